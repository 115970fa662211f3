import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eelib.confidence import METRICS, confidence
from eelib.errors import InvalidInputError


def test_a_case_by_hand():
    """p = (1/2, 1/4, 1/4): H = 1.5 bits."""
    found = confidence(torch.tensor([[2.0, 1.0, 1.0]]) * math.log(2) + 3)
    expected = {
        "entropy": -1.5 * math.log(2), "max_prob": 0.5, "margin": 0.25,
        "max_logit": 2 * math.log(2) + 3, "margin_logit": math.log(2),
    }  # fmt: skip
    assert {name: round(score.item(), 6) for name, score in found.items()} == {
        k: round(v, 6) for k, v in expected.items()
    }


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=12))
def test_sharper_logits_are_more_confident(values):
    logits = torch.tensor(values, dtype=torch.float64)
    flat, sharp = confidence(logits), confidence(2 * logits)
    for metric in ("entropy", "max_prob"):
        assert sharp[metric] >= flat[metric] - 1e-9


def test_half_precision_and_large_vocabularies_stay_finite():
    logits = torch.full((2, 256_000), -30.0, dtype=torch.bfloat16)
    logits[0, 5] = 80.0
    found = confidence(logits)
    assert all(score.dtype == torch.float32 and score.isfinite().all() for score in found.values())
    assert found["max_prob"][0] == 1 and abs(found["entropy"][1] + math.log(256_000)) < 1e-3


def test_only_what_is_asked_is_computed_and_unknown_names_are_refused():
    assert list(confidence(torch.randn(2, 5), ("margin",))) == ["margin"]
    with pytest.raises(InvalidInputError, match=", ".join(METRICS)):
        confidence(torch.randn(2, 5), ("certainty",))
