"""Bit for bit: what is verified together has the bits that it would have alone."""

import inspect

import pytest
import torch
from tiny import FAMILIES, N_BLOCKS, own_text, prompts, random_heads, tiny_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import eelib
from eelib.backbone.segments import Backbone
from eelib.decoding import bitwise, frontier
from eelib.decoding.bitwise import MAX_ROWS, RowExact, invariant_rows, row_groups
from eelib.decoding.frontier import Frontier
from eelib.errors import UnsupportedError


def test_groups_of_rows():
    x = torch.arange(2.0 * (2 * MAX_ROWS + 3)).reshape(1, -1, 2)
    assert [g.shape[1] for g in row_groups(x, frozenset({MAX_ROWS, 3}))] == [MAX_ROWS, MAX_ROWS, 3]
    assert [g.shape[1] for g in row_groups(x[:, :4], frozenset({3}))] == [1, 1, 1, 1]
    assert torch.equal(torch.cat(row_groups(x, frozenset({3})), dim=1), x)


def test_a_product_that_depends_on_its_rows_is_found():
    class Moody(nn.Linear):
        """Adds up in another order when it has three rows: the difference is one rounding."""

        def forward(self, x):
            if x.shape[-2] == 3:
                return nn.functional.linear(x.flip(-1), self.weight.flip(-1))
            return torch.cat([nn.functional.linear(row, self.weight) for row in x.split(1, dim=-2)], dim=-2)

    assert invariant_rows(Moody(64, 48, bias=False)) == frozenset(range(2, MAX_ROWS + 1)) - {3}


@pytest.fixture(
    scope="module",
    params=[
        *((family, torch.bfloat16) for family in FAMILIES),
        *(
            pytest.param((family, torch.float32), marks=() if family in ("llama", "gpt_neox") else pytest.mark.slow)
            for family in FAMILIES
        ),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def low_precision(request):
    """A model of which this machine can verify several positions with the bits of each alone; or that it says so, and
    None."""
    model = tiny_model(*request.param)
    try:
        RowExact.of(Backbone.of(model))
    except UnsupportedError:
        with pytest.raises(UnsupportedError, match="verify_lossless"):
            eelib.generate(model, prompts(1)[0], policy=eelib.FixedExit(3, 4), exact=True, max_new_tokens=3)
        return None
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("several", [True, False])
def test_where_no_product_takes_several_rows_all_else_still_does(monkeypatch, dtype, several):
    """On any CPU: what remains, norms and activations, is computed row by row or element by element anyway. And where
    even that were not so, positions go one by one, exact by construction."""
    monkeypatch.setattr(bitwise, "invariant_rows", lambda product: frozenset())
    if not several:
        keeps = RowExact._keeps_bits
        monkeypatch.setattr(RowExact, "_keeps_bits", lambda self, backbone: self.at_once == 1 and keeps(self, backbone))
    model = tiny_model("llama", dtype, seed=4)
    assert RowExact.of(Backbone.of(model)).at_once == (MAX_ROWS if several else 1)
    heads = random_heads(model)
    for prompt in prompts(3):
        out = eelib.generate(model, prompt, heads=heads, policy=eelib.FixedExit(3, 4), exact=True, max_new_tokens=30)
        assert torch.equal(out.sequences, own_text(model, prompt, max_new_tokens=30))
        assert len(set(out.stats.block_positions)) == 1


def test_every_position_has_the_bits_of_a_call_of_its_own(low_precision):
    """Whatever waits together: two, three or nine positions, in segments that ran at different times."""
    if low_precision is None:
        return
    backbone, text = Backbone.of(low_precision), prompts(1, 30)[0]
    alone, together = (Frontier(backbone, (2, 4), 32, RowExact.of(backbone)) for _ in range(2))
    for each in (alone, together):
        each.feed(text[:, :11])
        each.complete()
    expected = []
    for i in range(11, 30):
        alone.feed(text[:, i : i + 1])
        expected.append(alone.unembed(alone.complete()))
    found = []
    for start, end in ((11, 13), (13, 16), (16, 25), (25, 26), (26, 30)):
        for i in range(start, end):
            together.feed(text[:, i : i + 1])
            together.advance(0)
        found.append(together.unembed(together.complete()))
    assert torch.equal(torch.cat(found, dim=1), torch.cat(expected, dim=1))


def test_low_precision_text_is_the_models_own_token_for_token(low_precision):
    if low_precision is None:
        return
    heads, drafted = random_heads(low_precision), 0
    policies = eelib.FixedExit(3, 4), eelib.Confidence("max_prob", (0.2, 0.2, 0.2), back_off=False)
    for policy, prompt in zip(policies, prompts(2, length=9), strict=True):
        out = eelib.generate(low_precision, prompt, heads=heads, policy=policy, exact=True, max_new_tokens=30)
        assert torch.equal(out.sequences, own_text(low_precision, prompt, max_new_tokens=30))
        drafted += out.stats.drafted
    assert drafted > 0


def test_where_no_way_is_exact_it_is_said(monkeypatch):
    monkeypatch.setattr(RowExact, "_keeps_bits", lambda self, backbone: False)
    model = tiny_model("llama", torch.bfloat16, seed=6)
    with pytest.raises(UnsupportedError, match="verify_lossless"):
        eelib.generate(model, prompts(1)[0], policy=eelib.FixedExit(3, 4), exact=True, max_new_tokens=3)


def test_probing_for_bits_leaves_the_model_as_it_was():
    model = tiny_model("llama", torch.bfloat16, seed=5)
    before = {name: id(module) for name, module in model.named_modules()}, model.config.to_dict()
    RowExact.of(Backbone.of(model))
    assert ({name: id(module) for name, module in model.named_modules()}, model.config.to_dict()) == before
    assert model.config._attn_implementation == "sdpa" and len(model.model.layers) == N_BLOCKS


@pytest.fixture
def bf16():
    """A model in bfloat16 that can be verified bit by bit on this machine; None where it says that it cannot, and then
    `exact` is not the default."""
    model = tiny_model("llama", torch.bfloat16)
    try:
        RowExact.of(Backbone.of(model))
    except UnsupportedError:
        assert not frontier.exact_is_affordable(Backbone.of(model))
        return None
    return model


def test_exact_by_default_where_it_costs_next_to_nothing(bf16, monkeypatch):
    """Only where outputs would differ, timed once a model, and not where nothing is drafted."""
    if bf16 is None:
        return
    asked, timed = prompts(1)[0], []
    options = {"policy": eelib.FixedExit(3, 4), "max_new_tokens": 6}

    def costs(share):
        monkeypatch.setattr(frontier, "_affordable", {})
        monkeypatch.setattr(frontier, "_cost_of_exact", lambda backbone: timed.append(backbone) or share)

    costs(0.02)
    assert not eelib.generate(bf16, asked, policy=eelib.Never(), max_new_tokens=6).stats.exact and not timed
    out = eelib.generate(bf16, asked, **options)
    assert out.stats.exact and timed == [Backbone.of(bf16)]
    assert eelib.generate(bf16, asked, **options).stats.exact and len(timed) == 1
    assert not eelib.generate(bf16, asked, exact=False, **options).stats.exact
    masked = torch.ones_like(asked).index_fill(1, torch.tensor([0]), 0)
    assert not eelib.generate(bf16, asked, attention_mask=masked, **options).stats.exact
    assert torch.equal(out.sequences, bf16.generate(asked, do_sample=False, max_new_tokens=6))
    costs(0.04)
    assert not eelib.generate(bf16, asked, **options).stats.exact


@pytest.mark.parametrize(("share", "proved"), [(0.02, 1), (0.04, 0)])
def test_exact_is_proved_only_where_it_would_be_affordable(monkeypatch, share, proved):
    """Proving takes longer than timing. Blocks that take one position at a time cost a pass each, however timed."""
    model, asked = tiny_model("llama", torch.bfloat16, seed=9), []
    monkeypatch.setattr(frontier, "_cost_of_exact", lambda backbone: share)
    monkeypatch.setattr(RowExact, "_keeps_bits", lambda self, backbone: asked.append(self) or self.at_once == 1)
    assert not frontier.exact_is_affordable(Backbone.of(model))
    assert len(set(asked)) == proved


def test_what_exact_costs_is_timed(bf16, llama):
    assert bf16 is None or -1 < frontier._cost_of_exact(Backbone.of(bf16)) < 100
    assert not frontier.exact_is_affordable(Backbone.of(llama))  # float64: equal anyhow


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "granitemoe", "qwen2_moe"])
def test_experts_take_rows_one_by_one(family):
    """Their routers are no products of rows with a weight, and how experts add up depends on who shares a call."""
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 4, "intermediate_size": 48, "moe_intermediate_size": 16, "num_local_experts": 4,
        "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1, "initializer_range": 0.3,
        "max_position_embeddings": 256,
    }  # fmt: skip
    cls = CONFIG_MAPPING[family]
    known = set(inspect.signature(cls.__init__).parameters) | set(cls.attribute_map)
    torch.manual_seed(0)
    config = cls(**{name: size for name, size in sizes.items() if name in known})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    model.set_experts_implementation("eager")
    for prompt in prompts(2):
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        try:
            out = eelib.generate(model, prompt, policy=eelib.FixedExit(2, 3), exact=True, **options)
        except UnsupportedError:  # by name, where this machine cannot
            continue
        assert torch.equal(out.sequences, model.generate(prompt, **options))
