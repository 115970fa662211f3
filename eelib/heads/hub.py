"""Saved heads: weights, configuration and model card, on disk or the Hub.

huggingface_hub's ModelHubMixin does not fit: it deletes config.json before writing the weights, so a failed save would
destroy earlier heads, and it passes config.json to `__init__`, which takes a model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eelib.backbone.loading import HUB_ID
from eelib.errors import HeadsError
from eelib.workspace import atomic_write, expanded

FILES = ("config.json", "model.safetensors")


def write_heads(folder: str | Path, described: dict, tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors, config.json and README.md (a model card), each atomically."""
    folder = expanded(folder)
    with atomic_write(folder / "model.safetensors") as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with atomic_write(folder / "config.json") as path:
        path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    with atomic_write(folder / "README.md") as path:
        path.write_text(model_card(described), encoding="utf-8")


def read_heads(name: str | Path) -> tuple[Path, dict, dict[str, Tensor]]:
    """Folder, configuration and tensors of saved heads, local or on the Hub.

    Raises:
        HeadsError: no heads there.
    """
    folder = expanded(name)
    if not folder.is_dir() and HUB_ID.fullmatch(str(name)):
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=list(FILES)))
        except (HfHubHTTPError, OSError) as error:
            raise HeadsError(f"{name} is neither a folder nor heads on the Hub: {error}") from error
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise HeadsError(
            f"No heads in {folder}: {' and '.join(missing)} missing. `eelib.ExitHeads.save_pretrained` writes them."
        )
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "heads" not in described or "fingerprint" not in described:
        raise HeadsError(f"{folder / 'config.json'} does not describe heads: expected keys heads, fingerprint.")
    return folder, described, load_file(folder / "model.safetensors")


def push_heads(save: Callable[[str], None], repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Upload what `save` writes, in one commit; return its URL."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as folder:
        save(folder)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Early-exit heads")


def model_card(described: dict) -> str:
    """Model card in Markdown, from the saved configuration."""
    heads, training = described["heads"], described["training"]
    rows = "".join(
        f"| {row['depth']} | {row['agreement']:.3f} | {row['loss']:.3f} |\n" for row in training.get("validation", [])
    )
    return (
        f"# Early-exit heads for {described['backbone']}\n\n"
        f"Kind `{heads['kind']}`, after {', '.join(map(str, heads['depths']))} of {described['n_blocks']} blocks; "
        f"draft vocabulary: {heads['draft_vocab_size'] or 'the whole vocabulary'}. "
        f"Backbone fingerprint `{described['fingerprint'][:12]}`; eelib {described['eelib_version']}.\n\n"
        + (f"| depth | agreement, held-out text | KL [nats] |\n|---|---|---|\n{rows}\n" if rows else "")
        + (f"Tuned policy: `{json.dumps(described['policy'])}`\n\n" if described.get("policy") else "")
        + f"Training: `{json.dumps({k: v for k, v in training.items() if k != 'validation'})}`\n\n"
        '```python\nheads = eelib.ExitHeads.from_pretrained("this folder", model)\n```\n'
    )
