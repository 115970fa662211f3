"""Is the output the model's own? The table that says so, and the long runs whose results are under docs/results/."""

import pandas as pd
import pytest
import torch
from tiny import FAMILIES, VOCAB_SIZE, Pattern, prompts, random_heads, tiny_model, write_results

import eelib
from eelib.backbone.segments import Backbone
from eelib.decoding import lossless
from eelib.decoding.bitwise import RowExact
from eelib.errors import UnsupportedError

POLICIES = {
    "FixedExit(3, 4)": eelib.FixedExit(3, 4),
    "Confidence": eelib.Confidence("max_prob", (0.2, 0.2, 0.2), back_off=False),
    "SkipDecode(6, 2, 30)": eelib.baselines.SkipDecode(6, 2, 30),
    "any order of depths": Pattern((5, 1, 3, None, 1, 5, 3)),
}


def test_a_near_tie_and_a_real_difference_are_told_apart(llama, monkeypatch):
    table = eelib.verify_lossless(llama, random_heads(llama), POLICIES, prompts(3), max_new_tokens=10)
    assert table.equal.all() and (table.first_mismatch == -1).all() and len(table) == 12
    assert list(table.policy[:4]) == list(POLICIES)

    def wrong(model, prompt, **kwargs):
        out = eelib.generate(model, prompt, **kwargs)
        out.sequences[0, -1] = (out.sequences[0, -1] + 1) % VOCAB_SIZE
        return out

    monkeypatch.setattr(lossless, "generate", wrong)
    table = eelib.verify_lossless(llama, random_heads(llama), eelib.FixedExit(5, 2), prompts(3), max_new_tokens=10)
    assert not table.equal.any() and (table.first_mismatch == 9).all() and not table.near_tie.any()


def test_what_is_compared_is_greedy_and_judged_by_what_is_chosen_by(monkeypatch):
    """Also for a model whose own config samples, and with penalties: the gap is of the scores, not of the logits."""
    model = tiny_model("llama", seed=11)
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.return_dict_in_generate = True
    heads, options = random_heads(model), {"max_new_tokens": 16, "eos_token_id": None}
    table = eelib.verify_lossless(model, heads, eelib.FixedExit(3, 3), prompts(3), **options)
    assert table.equal.all()
    table = eelib.verify_lossless(
        model, heads, eelib.FixedExit(3, 3), prompts(1), return_dict_in_generate=True, **options
    )
    assert table.equal.all()

    def wrong(model, prompt, **kwargs):
        out = eelib.generate(model, prompt, **kwargs)
        out.sequences[0, -1] = (out.sequences[0, -1] + 1) % VOCAB_SIZE
        return out

    monkeypatch.setattr(lossless, "generate", wrong)
    table = eelib.verify_lossless(model, heads, eelib.FixedExit(3, 3), prompts(1), **options)
    own = model.generate(
        prompts(1)[0], do_sample=False, output_scores=True, return_dict_in_generate=True, **options
    ).scores[-1]
    best = own[0].topk(2).values
    assert table.gap[0] == pytest.approx((best[0] - best[1]).item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_architecture_at_length():
    """float64 is the model's own, always; with `exact`, so are float32 and bfloat16 where this machine can do that.
    Without it, differences show."""
    tables = []
    for family in FAMILIES:
        for dtype, exact in (
            (torch.float64, False),
            (torch.float32, False),
            (torch.float32, True),
            (torch.bfloat16, False),
            (torch.bfloat16, True),
        ):
            model = tiny_model(family, dtype)
            try:
                at_once = RowExact.of(Backbone.of(model)).at_once if exact else None
            except UnsupportedError:
                continue
            found = eelib.verify_lossless(
                model, random_heads(model), POLICIES, prompts(8, length=9), exact=exact, max_new_tokens=60
            )
            tables.append(
                found.assign(family=family, dtype=str(dtype).removeprefix("torch."), exact=exact, at_once=at_once)
            )
    table = pd.concat(tables)
    write_results("lossless_architectures", table)
    assert table[table.exact | (table.dtype == "float64")].equal.all()
