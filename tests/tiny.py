"""Small models with random weights, made from configs: nothing here needs a network or a download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import eelib
from eelib.confidence.metrics import confidence

PROJECT = Path(__file__).parents[1]
VOCAB_SIZE, N_BLOCKS = 97, 6
DEPTHS = (1, 3, 5)
"""Where `random_heads` has heads."""

FAMILIES = {
    "gpt_neox": {"rotary_pct": 0.25, "use_parallel_residual": True},
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 24, "ffn_dim": 48, "do_layer_norm_before": True},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi": {},
    "olmo2": {"num_key_value_heads": 2},
    "bloom": {},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.5},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 6},
    "stablelm": {"num_key_value_heads": 2},
}  # fmt: skip
"""Architectures, by transformers' name, with what makes each of them peculiar."""
ALL_IN_FLOAT64 = ("gpt_neox", "gpt2", "opt", "phi", "falcon", "starcoder2", "stablelm")
"""Those of which nothing is computed in another type than the model's. RMS norms, and softmax in eager attention, are
taken in float32 whatever that type is."""


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **settings):
    """A random model of 6 blocks. Large weights, so that its text does not fall into a loop."""
    sizes = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "initializer_range": 0.3, "init_std": 0.3,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **sizes | FAMILIES[family] | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval().requires_grad_(False)


def closeness(model) -> dict[str, float]:
    """How near two ways to one state of a float64 model are, for `torch.testing.assert_close`: another order of
    additions moves it by some roundings of float64; or of float32, which the blocks above make larger."""
    return {"rtol": 0, "atol": 1e-11 if model.config.model_type in ALL_IN_FLOAT64 else 1e-4}


def prompts(n: int, length: int = 7, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (1, length), generator=generator) for _ in range(n)]


def after(position: int, texts: list[torch.Tensor]) -> list[torch.Tensor]:
    """For each text the mask of the positions from this one on."""
    return [torch.arange(len(text)) >= position for text in texts]


def random_heads(model, depths=DEPTHS, seed=0, scale=0.3, kind="affine"):
    """Heads whose maps are random, so that they agree sometimes and disagree strongly at other times."""
    heads = eelib.ExitHeads.init(model, depths, kind, seed=seed).to(model.dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return heads.requires_grad_(False)


@dataclass(frozen=True)
class Pattern(eelib.Policy):
    """Leaves at depths[position % n]; None = the full model speaks. Exercises every order of depths."""

    depths: tuple[int | None, ...]

    def exit_depths(self, head_depths):
        return tuple(sorted({depth for depth in self.depths if depth is not None}))

    def draft_limit(self, state):
        return len(self.depths)

    def asks(self, state, depth, position):
        return depth == self.depths[position % len(self.depths)]

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")


def own_text(model, prompt, **kwargs):
    """What the model itself says, greedily."""
    return model.generate(prompt, **{"do_sample": False, **kwargs})


def write_results(name: str, table: pd.DataFrame) -> None:
    """docs/results/{name}.csv: one row per policy and whatever else tells cases apart; gaps in units of rounding."""
    keys = [key for key in ("family", "dtype", "exact", "at_once", "policy") if key in table]
    table = table.assign(roundings=table.gap / table.rounding, different=~table.equal)
    summary = table.groupby(keys, sort=False, dropna=False).agg(
        cases=("equal", "size"),
        tokens=("tokens", "sum"),
        drafted=("drafted", "sum"),
        accepted=("accepted", "sum"),
        differences=("different", "sum"),
        near_ties=("near_tie", "sum"),
        largest_gap_in_roundings=("roundings", "max"),
    )
    folder = PROJECT / "docs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    summary.reset_index().to_csv(folder / f"{name}.csv", index=False, float_format="%.3g")


def scored_by_hand(heads, text, start: int, metric: str, thresholds) -> tuple[float, float]:
    """What a text's tokens from `start` on sum to when each is scored by the first head whose score reaches its
    threshold (by depth), else by the full model: log-probability in nats, and mean blocks a token."""
    last = heads.backbone.n_blocks
    states = heads.backbone.states(text[None], [*heads.depths, last])
    before = {depth: state[0, start - 1 : -1] for depth, state in states.items()}
    sure = {d: confidence(heads.logits(d, before[d]), [metric])[metric] >= t for d, t in thresholds.items()}
    depths = [next((d for d in sure if sure[d][i]), last) for i in range(len(text) - start)]
    logits = {d: heads.backbone.unembed(before[d]) if d == last else heads.full_logits(d, before[d]) for d in {*depths}}
    log_probs = {d: of.float().log_softmax(-1) for d, of in logits.items()}
    return sum(log_probs[d][i, text[start + i]].item() for i, d in enumerate(depths)), float(np.mean(depths))


def letters(**special) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with a vocabulary of VOCAB_SIZE: three special tokens, printable
    ASCII and the end of a line."""
    special = special or {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = ["<unk>", "<bos>", "<eos>", *map(chr, range(32, 32 + VOCAB_SIZE - 4)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def traces_of(rows, depths=(2, 4)):
    """rows: (sequence, a score a head, whether each head agrees), in the order of `record_traces`."""
    table = []
    for position, (sequence, scores, agrees) in enumerate(rows):
        for head, depth in enumerate(depths):
            row = {"sequence": sequence, "position": position, "head": head, "depth": depth, "agrees": agrees[head]}
            table.append(row | dict.fromkeys(eelib.METRICS, float(scores[head])))
    return pd.DataFrame(table)


def drawn(n, seed=0, tokens=20, skill=2.0, depths=(2, 4)):
    """Sequences of tokens that are strongly dependent: how hard a sequence is shifts all of them."""
    draw, rows = np.random.default_rng(seed), []
    for sequence in range(n):
        hard = draw.normal()
        for _ in range(tokens):
            scores = draw.normal(size=len(depths)) + np.arange(len(depths))
            rows.append((sequence, scores, draw.random(len(depths)) < 1 / (1 + np.exp(hard - skill * scores))))
    return traces_of(rows, depths)


CHATML = (
    "{% for m in messages %}{{ '<bos>' + m['role'][0] + ':' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>a:' }}{% endif %}"
)


def chatty():
    tokenizer = letters()
    tokenizer.chat_template = CHATML
    return tokenizer


def with_intervals(table, *names):
    return table.assign(**{f"{n}_low": table[n] - 0.1 for n in names}, **{f"{n}_high": table[n] + 0.2 for n in names})


DECODERS = with_intervals(
    pd.DataFrame({
        "decoder": ["plain", "DSSD", "LayerSkip, logit lens", "LayerSkip, our heads"],
        "kind": [None, "DSSD", "LayerSkip, logit lens", "LayerSkip, our heads"],
        "epsilon": [None, 0.7, None, None], "depth": [None, None, 1, 6], "draft_length": [None, None, 1, 2],
        "acceptance_rate": [None, 0.5, 0.1, 0.4], "speed_ratio": [1, 1.1, 0.9, 1.0],
        "acceptance_ratio": [None, None, 5.0, 1.25],
    }).astype({"epsilon": float, "depth": float, "draft_length": float, "acceptance_rate": float}),
    "acceptance_rate", "speed_ratio", "acceptance_ratio",
)  # fmt: skip
