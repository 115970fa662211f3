"""Every architecture that transformers maps to a causal language model: its own text, or an error that says why."""

import logging

import pandas as pd
import pytest
import torch
from architectures import NAMES, tiny_architecture, tiny_prompts
from tiny import PROJECT, random_heads

import eelib
from eelib.errors import EelibError

NEW = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def outcome(name: str) -> tuple[str, str]:
    """What becomes of one architecture, and why: equal, refused, another text, raw (an error that is not eelib's), its
    own (transformers itself fails) or not built."""
    try:
        model = tiny_architecture(name)
    except Exception as error:
        return "not built", _said(error)
    asked = list(tiny_prompts(model))
    try:
        texts = [model.generate(prompt, **NEW) for prompt in asked]
    except Exception as error:
        return "its own", _said(error)
    try:
        n_blocks = eelib.Backbone.of(model).n_blocks
        depth = max(1, n_blocks // 2)
        ways = [(eelib.Never(), None), (eelib.FixedExit(depth, 3), random_heads(model, (depth,)))]
        ways += [(eelib.FixedExit(n_blocks - 1, 4), None), (eelib.Lookup(), None)]
        for prompt, text in zip(asked, texts, strict=True):
            for policy, heads in ways:
                out = eelib.generate(model, prompt, policy=policy, heads=heads, **NEW)
                if not torch.equal(out.sequences, text):
                    return "another text", f"{policy}, prompt of {prompt.shape[1]} tokens"
    except EelibError as error:
        return "refused", _said(error)
    except Exception as error:
        return "raw", _said(error)
    return "equal", ""


def exact_outcome(name: str) -> tuple[str, str]:
    """The same for `exact` in bfloat16, several positions at once."""
    try:
        model = tiny_architecture(name).bfloat16()
        (prompt, _), text = tiny_prompts(model), None
        text = model.generate(prompt, **NEW)
        n_blocks = eelib.Backbone.of(model).n_blocks
    except Exception as error:
        return "its own", _said(error)
    try:
        out = eelib.generate(model, prompt, policy=eelib.FixedExit(max(1, n_blocks // 2), 3), exact=True, **NEW)
    except EelibError as error:
        return "refused", _said(error)
    except Exception as error:
        return "raw", _said(error)
    return ("equal", "") if torch.equal(out.sequences, text) else ("another text", "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_causal_architecture():
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = [{"architecture": name, **dict(zip(("outcome", "why"), outcome(name), strict=True))} for name in NAMES]
    table = pd.DataFrame(rows)
    exact = [exact_outcome(row["architecture"]) if row["outcome"] == "equal" else ("", "") for row in rows]
    table["exact"], table["exact_why"] = zip(*exact, strict=True)
    table.to_csv(PROJECT / "docs" / "results" / "architectures.csv", index=False)
    bad = table[table.outcome.isin(["raw", "another text"]) | table.exact.isin(["raw", "another text"])]
    assert bad.empty, bad.to_string()
    assert (table.outcome == "equal").sum() >= 125


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mllama", "refused"), ("openai-gpt", "refused"), ("rwkv", "refused"), ("falcon_h1", "refused"),
        ("deepseek_v4", "refused"), ("hy_v4", "refused"), ("zaya", "refused"), ("deepseek_v32", "refused"),
        ("bert", "equal"), ("roberta", "equal"), ("bart", "equal"), ("deepseek_v3", "equal"), ("gpt_oss", "equal"),
        ("moshi", "refused"),
    ],
)  # fmt: skip
def test_some_of_them(name, expected):
    found, why = outcome(name)
    assert found == expected, why
