"""Loading of models and tokenizers, by name, folder or Hub id."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eelib import packaged
from eelib.errors import InvalidInputError, ModelError
from eelib.workspace import expanded, note_input, read_json
from eelib.workspace.ledger import COMMIT

PYTHIA = tuple(f"EleutherAI/pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b"))
DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_model(
    name: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model for inference, frozen and in eval mode.

    Args:
        name: a packaged model (`eelib.packaged.MODELS`), a folder written by `save_pretrained`, or a Hub id
            ("org/name"). Code in a repository is never run.
        dtype: of the weights, as a name or a torch dtype; None or "auto" for the stored one.
        device: None for the GPU if torch finds one, else the CPU.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: the name is unknown, the packaged model was not fetched, a folder holds no model, the Hub is
            unreachable or lacks it, or weights are missing.
        InvalidInputError: dtype or device is not available in torch here.

    Example:
        >>> model, tokenizer = load_model(folder, dtype="float32")
        >>> model.dtype, model.training
        (torch.float32, False)
    """
    dtype, device = _dtype(dtype), _device(device)
    source = _locate(str(name))
    if Path(source).is_dir():
        _check_sizes(Path(source))
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False, weights_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the readers of weights, configs and the Hub share no narrower class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        where = "" if Path(source).is_dir() else " from the Hugging Face Hub (is it reachable, is the id right?)"
        raise ModelError(f"Could not load {name}{where}: {reason[0]}") from error
    # transformers only warns and fills in random weights, with which every result would be wrong.
    absent = sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]}))
    if absent:
        raise ModelError(
            f"{name} lacks {len(absent)} of the weights of a {type(model).__name__}, or has other shapes: {absent[0]}, "
            "for one. Expected a causal language model, completely downloaded."
        )
    _note_inputs(source, model)
    model.config._name_or_path = str(name)  # what artefacts call it by: the name, not where it lies on this machine
    return model.to(device).eval().requires_grad_(False), tokenizer


def _check_sizes(folder: Path) -> None:
    """Refuse a configuration of more blocks than weights could fill.

    transformers would build the whole model before it looks at them.
    """
    config = read_json(folder / "config.json", ModelError, digest=False)
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    weights = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if isinstance(blocks, int) and blocks > weights:  # a block has at least one number
        raise ModelError(f"{folder / 'config.json'} names {blocks:,} blocks, its weights have {weights:,} bytes.")


def _note_inputs(source: str, model: PreTrainedModel) -> None:
    """Note the model as an input of what this process makes."""
    folder = Path(source)
    if not folder.is_dir():  # the Hub's own digest of all files
        note_input(Path("/hub") / source, f"{COMMIT}{getattr(model.config, '_commit_hash', None)}")
        return
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") or file.name in ("config.json", "tokenizer.json"):
            note_input(file)


def batch_dtype(dtype: str, device: str | torch.device | None = None) -> str:
    """Dtype for large matrix products: training, or writing a corpus.

    It is `dtype`, except float32 in place of a 16-bit type on a CPU without instructions for it, where products take 2
    to 4 times as long as in float32; with them a half to a fifth (measured on AMX and on avx512_bf16). Decoding one
    sequence is bound by memory, and keeps its type.
    """
    if _device(device).type != "cpu" or dtype not in ("bfloat16", "float16") or torch.cpu._is_amx_tile_supported():
        return dtype
    return dtype if dtype == "bfloat16" and torch.cpu._is_avx512_bf16_supported() else "float32"


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype not in DTYPES:
        raise InvalidInputError(f"Unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    return getattr(torch, dtype)


def _device(device: str | torch.device | None) -> torch.device:
    cuda = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda" if cuda else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"Unknown device {device!r}: expected one of torch's, such as cpu or cuda.") from error
    if found.type == "cuda" and not cuda:
        raise InvalidInputError(f"device={device!r}, but torch finds no CUDA GPU here: use device='cpu'.")
    return found


def _locate(name: str) -> str:
    """The folder or Hub id from which to load `name`."""
    if name in packaged.MODELS:
        return str(packaged.model_folder(name))
    if expanded(name).is_dir():
        return str(_check_folder(expanded(name)))
    if HUB_ID.fullmatch(name):
        return name
    raise ModelError(
        f"Unknown model {name!r}: expected a packaged model ({', '.join(packaged.MODELS)}), an existing folder, or a "
        f"Hub id of the form org/name, such as {', '.join(PYTHIA)}."
    )


def _check_folder(folder: Path) -> Path:
    odd = sorted(path.name for path in folder.iterdir() if not (path.is_file() or path.is_dir()))
    if odd:
        raise ModelError(f"In {folder} {', '.join(odd[:8])} cannot be read: expected files, no pipes or broken links.")
    found = sorted(path.name for path in folder.iterdir())
    lacking = [] if "config.json" in found else ["config.json"]
    if not any(file.endswith((".safetensors", ".bin")) for file in found):
        lacking.append("weights (*.safetensors)")
    if lacking:
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
        raise ModelError(
            f"The folder {folder} holds no model: {' and '.join(lacking)} missing; found {shown}. Expected what "
            "model.save_pretrained and tokenizer.save_pretrained write."
        )
    return folder
