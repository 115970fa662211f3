"""A tiny random model of every architecture that transformers maps to a causal language model, made from its config."""

import inspect
from collections.abc import Iterator

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 30_000_000  # parameters; a config that yields more was not made small

_DIMENSIONS = {
    32: "hidden_size d_model n_embd",
    6: "num_hidden_layers n_layer num_layers n_layers decoder_layers sliding_window",
    4: "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts mamba_d_conv",
    2: "num_key_value_heads encoder_layers num_experts_per_tok moe_top_k mamba_expand",
    1: "n_group topk_group first_k_dense_replace n_shared_experts mamba_n_groups",
    8: "head_dim q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim mamba_d_state mamba_n_heads "
    "mamba_d_head",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size",
    16: "moe_intermediate_size shared_expert_intermediate_size",
    97: "vocab_size",
    256: "max_position_embeddings n_positions",
}
SIZES = {name: size for size, names in _DIMENSIONS.items() for name in names.split()}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3, "init_std": 0.3}
TEXT = {
    name: SIZES[name]
    for name in "vocab_size hidden_size num_attention_heads num_key_value_heads intermediate_size head_dim "
    "bos_token_id eos_token_id pad_token_id initializer_range max_position_embeddings sliding_window".split()
} | {"num_hidden_layers": 4}
SEEN = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
SEEN |= {"image_size": 28, "patch_size": 14}
_GEMMA4 = TEXT | {
    "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_GEMMA4_ALONE = {"text_config": _GEMMA4, "vision_config": None, "audio_config": None}
_ALL_HEADS = {"num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
MORE = {
    **dict.fromkeys(
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_linear "
        "longcat_flash minicpm3 youtu".split(),
        _ALL_HEADS,
    ),
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention"] * 6,
        "rope_parameters": {"sliding_attention": _ROPE},
    },
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": 97, "max_seq_len": 256, "initializer_range": 0.3,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": _ALL_HEADS | {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fuyu": {
        "text_config": {"model_type": "persimmon", **TEXT, **_ALL_HEADS}, "hidden_size": 32, "vocab_size": 97,
        "image_size": 30, "patch_size": 10,
    },
    "gemma3": {"text_config": TEXT, "vision_config": SEEN, "mm_tokens_per_image": 4},
    "gemma3n_text": TEXT | {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 4,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97, "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4": _GEMMA4_ALONE, "gemma4_text": _GEMMA4, "gemma4_unified": _GEMMA4_ALONE, "gemma4_unified_text": _GEMMA4,
    "got_ocr2": {"text_config": {"model_type": "qwen2", **TEXT}, "vision_config": {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "mlp_dim": 24, "num_pos_feats": 4,
    }},
    "gpt_neo": {
        "num_layers": 6, "num_hidden_layers": 6, "attention_types": [[["global", "local"], 3]], "window_size": 6,
    },
    "gptj": {"rotary_dim": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3, "num_dense_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "moshi": {"audio_vocab_size": 20},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3", **TEXT}, "audio_config": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
    }},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "ngram_vocab_size_base": 97, "split_ngram_parts": 1, "hc_lowrank": 4,
    },
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "local"], "local_attn_chunk_length": 8, "axial_pos_embds": False,
        "hash_seed": 0, "feed_forward_size": 32, "attention_head_size": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid"] * 3, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a config needs beside SIZES."""
IN_FLOAT32 = ("inkling2_text", "xglm", "xlnet")
"""Whose own code does not run in float64."""


def tiny_architecture(name: str) -> PreTrainedModel:
    """A random model, in float64 where its own code allows that. Whatever its config or its code raises goes on."""
    cls, more = CONFIG_MAPPING[name], MORE.get(name, {})
    whole = any(part.endswith("_config") for part in more)
    config = cls(**({} if whole else _sizes(cls)) | more)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    torch.manual_seed(0)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > LARGEST:
        raise ValueError(f"not made small: {parameters} parameters")
    model = AutoModelForCausalLM.from_config(config)
    model = model.to(torch.float32 if name in IN_FLOAT32 else torch.float64).eval().requires_grad_(False)
    model.set_experts_implementation("eager")  # grouped products take no float64
    return model


def _sizes(cls: type[PreTrainedConfig], nested: bool = False) -> dict:
    """Of SIZES what a config takes, for its parts too."""
    known = {name for each in cls.__mro__ for name in vars(each).get("__annotations__", {})}
    known |= set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "attribute_map", None) or {})
    given = {name: size for name, size in SIZES.items() if name in known}
    for name, part in (getattr(cls, "sub_configs", None) or {}).items():
        if isinstance(part, type) and issubclass(part, PreTrainedConfig) and (name == "text_config" or not nested):
            given[name] = _sizes(part, nested=True)
    return given


def tiny_prompts(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Two prompts, one of them longer than any window."""
    generator = torch.Generator().manual_seed(0)
    most = min(97, model.config.get_text_config().vocab_size)
    for length in (9, 17):
        yield torch.randint(3, most, (1, length), generator=generator)
