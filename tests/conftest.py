"""Small models with random weights, made from configs: nothing here needs a network or a download."""

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("eelib", "beartype.beartype"):  # shapes in annotations are checked under pytest only
    import eelib  # noqa: F401

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE, N_BLOCKS = 97, 6


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **settings):
    """A random Llama-like or GPT-NeoX model of 6 blocks. Large weights, so that its text does not fall into a loop."""
    sizes = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.3, **settings,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=False))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, rotary_pct=0.25, use_parallel_residual=True))
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="session", params=["llama", "gpt_neox"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def llama():
    return tiny_model("llama")


def prompts(n: int, length: int = 7, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (1, length), generator=generator) for _ in range(n)]


def letters(**special) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with a vocabulary of VOCAB_SIZE: three special tokens and printable ASCII."""
    special = special or {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = ["<unk>", "<bos>", "<eos>", *map(chr, range(32, 32 + VOCAB_SIZE - 3))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
