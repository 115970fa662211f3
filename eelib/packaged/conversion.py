"""Conversion of GGUF files to the format that `load_model` reads."""

from pathlib import Path

from eelib.errors import FetchError
from eelib.packaged.registry import PackagedModel

_CHECKED = "In 2024,  12 cats — “quoted” — sat down.\n\n    def f(x):\n\treturn x + 1\n"
"""Text for checking a conversion."""


def convert(gguf: Path, target: Path, packaged: PackagedModel) -> None:
    """Read a GGUF file; save model and tokenizer in bfloat16 under `target`.

    Raises:
        FetchError: the file is unreadable, or the saved model computes something else than the file's.
    """
    import torch  # heavy imports stay inside, so that "nothing to do" is quick
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    print(f"Converting {gguf.name} to safetensors ...", flush=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, trust_remote_code=False
        ).eval()
    except Exception as error:  # transformers promises no narrower class for a file that it cannot read
        raise FetchError(
            f"transformers could not read {gguf.name}: {error}. Fetch it again if it is damaged, else "
            "install a version of transformers that eelib is tested with."
        ) from error
    if packaged.splits_digits:
        _split_digits(tokenizer)

    with torch.inference_mode():
        expected = read(tokenizer(_CHECKED, return_tensors="pt").input_ids).logits
    # A model that was read from GGUF refuses to be saved, so its weights are handed to one made from the config.
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "dtype")}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in packaged.ends]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=ends[-1]
    )
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # written for the owner only
    tokenizer.save_pretrained(target)
    del read, model  # before the saved one is loaded: two large ones may not fit
    _check_conversion(gguf.name, expected, tokenizer, target)


def _split_digits(tokenizer) -> None:
    """Split numbers into digits, which transformers' GGUF reader omits."""
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _check_conversion(name: str, expected, tokenizer, target: Path) -> None:
    """Compare the saved model's logits with the original's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved_tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    ids = saved_tokenizer(_CHECKED, return_tensors="pt").input_ids
    if saved_tokenizer.decode(ids[0]) != _CHECKED or ids[0].tolist() != tokenizer(_CHECKED).input_ids:
        raise FetchError(
            f"The tokenizer converted from {name} does not reproduce a text: install a version of "
            "transformers that eelib is tested with."
        )
    if saved_tokenizer.chat_template is None:
        raise FetchError(
            f"The tokenizer converted from {name} has no chat template: install a version of "
            "transformers that eelib is tested with."
        )

    saved = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16, trust_remote_code=False).eval()
    with torch.inference_mode():
        expected, found = expected.float(), saved(ids).logits.float()
    # The weights are the same; logits of a wrong conversion differ by their own size.
    error = ((found - expected).norm() / (expected - expected.mean()).norm()).item()
    if not error < 0.05:  # also where it is not a number
        raise FetchError(
            f"The converted model's logits differ from those of {name} by {error:.3g} of their size; expected less "
            "than 0.05. Install a version of transformers that eelib is tested with."
        )
    print(f"Checked one forward pass: relative difference {error:.1e}", flush=True)
