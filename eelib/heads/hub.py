"""Saved heads: weights, configuration and model card, on disk or the Hub.

huggingface_hub's ModelHubMixin does not fit: it deletes config.json before writing the weights, so a failed save would
destroy earlier heads, and it passes config.json to `__init__`, which takes a model.
"""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from eelib.backbone.loading import HUB_ID
from eelib.backbone.segments import Backbone
from eelib.errors import HeadsError
from eelib.heads.kinds import MixedLinear, make_map
from eelib.workspace import expanded, read_json, read_tensors, recorded, write_json, write_tensors, write_whole
from eelib.workspace.ledger import FOLDER

if TYPE_CHECKING:
    from eelib.heads.exit_heads import HeadConfig

FILES = ("config.json", "model.safetensors")
VALIDATED = ("depth", "agreement", "loss")


def write_heads(folder: str | Path, described: dict, tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors, config.json and README.md (a model card), together.

    Raises:
        DiskFullError: the disk is full.
    """
    with recorded(folder) as temporary:
        digest = write_tensors(temporary / "model.safetensors", tensors)
        write_json(temporary / "config.json", {**described, "weights": digest})
        write_whole(temporary / "README.md", model_card(described))


def read_heads(name: str | Path) -> tuple[Path, dict, dict[str, Tensor]]:
    """Folder, configuration and tensors of saved heads, local or on the Hub.

    Raises:
        HeadsError: no heads there, damaged ones, or a configuration that is none.
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
    described = read_json(folder / "config.json", HeadsError)
    _check_description(described, folder / "config.json")
    tensors, about = read_tensors(folder / "model.safetensors", HeadsError)
    if described.get("weights", about.get("digest")) != about.get("digest"):
        raise HeadsError(
            f"The weights in {folder} are not those that its config.json describes: they are being written, or writing "
            "them was cut off. Load them again, else make them again."
        )
    return folder, described, tensors


def check_weights(config: "HeadConfig", backbone: Backbone, tensors: dict[str, Tensor], folder: Path) -> None:
    """Check tensors of a file, before heads take memory.

    Raises:
        HeadsError: another set of tensors, other shapes or types, numbers that are not finite in the model's type, or a
            draft vocabulary that is none.
    """
    with torch.device("meta"):
        maps = {str(d): make_map(config.kind, config.width, config.skip, backbone.unembedding, backbone.hidden_size)
                for d in config.depths}  # fmt: skip
        expected = {f"maps.{name}": tensor.shape for name, tensor in nn.ModuleDict(maps).state_dict().items()}
        if config.draft_vocab_size is not None:
            other = MixedLinear(backbone.unembedding.weight.shape[1], 1).state_dict()
            expected |= {f"others.{d}.{name}": of.shape for d in config.depths for name, of in other.items()}
            expected["draft_tokens"] = torch.Size([config.draft_vocab_size])
    found = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise HeadsError(
            f"The heads in {folder} do not have the weights that eelib {version('eelib')} expects of this kind: train "
            f"them again. {len(differing)} differ, {name} for one: expected {_shape(expected.get(name))}, found "
            f"{_shape(found.get(name))}."
        )
    for name, tensor in tensors.items():
        if name == "draft_tokens":
            ascending = tensor.dtype == torch.int64 and bool((tensor[1:] > tensor[:-1]).all())
            if not ascending or tensor[0] < 0 or tensor[-1] >= backbone.vocab_size:
                raise HeadsError(
                    f"The heads in {folder} draft other tokens than this model has: expected ascending ones below "
                    f"{backbone.vocab_size}."
                )
        elif tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise HeadsError(f"The heads in {folder} have weights of type {tensor.dtype} ({name}): expected floats.")
        elif not tensor.to(backbone.model.dtype).isfinite().all():
            raise HeadsError(
                f"The heads in {folder} have weights that are not finite in {backbone.model.dtype} ({name}): train "
                "them again, or load the model in a wider type."
            )


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def _check_description(described: dict, file: Path) -> None:
    """Check what a configuration says of heads, but for their settings."""
    needed = {"heads": dict, "fingerprint": str, "backbone": str, "training": dict, "n_blocks": int}
    kinds = needed | {name: kind for name, kind in (("policy", dict), ("sketch", list)) if name in described}
    wrong = [name for name, kind in kinds.items() if not isinstance(described.get(name), kind)]
    if wrong:
        raise HeadsError(f"{file} does not describe heads: {', '.join(wrong)} missing, or of another kind.")
    try:
        numbers = [row[name] for row in described["training"].get("validation", []) for name in VALIDATED]
    except (TypeError, LookupError, AttributeError) as error:
        raise HeadsError(f"{file}: validation is not what training writes: {error!r}.") from error
    if not all(isinstance(number, int | float) for number in [*numbers, *described.get("sketch", [])]):
        raise HeadsError(f"{file}: expected numbers in validation and sketch.")


def push_heads(save: Callable[[str], None], repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Upload what `save` writes, in one commit; return its URL."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as folder:
        save(folder)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Early-exit heads", ignore_patterns=[f"{FOLDER}/*"]
        )


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
