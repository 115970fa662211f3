"""Runs to explore: one decoded, one made up; and node, where it is installed."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import N_BLOCKS, letters, prompts, random_heads

import eelib
from eelib.decoding.output import TRACE_COLUMNS
from eelib.evaluation import WeightReads
from eelib.explorer import Recording, TextTraces, trace_text


@pytest.fixture(scope="session")
def node():
    """Runs JavaScript: `node(*arguments)` is what it prints."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node: install Node.js 20 or newer (Debian's package nodejs) to test the explorer's JavaScript")

    def run(*arguments: str) -> str:
        done = subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def decoded(llama):
    """Model, tokenizer, heads, policy and output of one verified run in which drafts are accepted and rejected."""
    heads = random_heads(llama, scale=0.02)
    policy = eelib.Confidence("max_prob", (0.3, 0.25, 0.2), max_draft=5, back_off=False)
    output = eelib.generate(llama, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=40, eos_token_id=None)
    assert 0 < output.stats.accepted < output.stats.drafted
    return llama, letters(), heads, policy, output


@pytest.fixture(scope="session")
def recording(decoded):
    model, tokenizer, heads, policy, output = decoded
    return Recording(output, trace_text(model, tokenizer, output, heads), policy)


@pytest.fixture(scope="session")
def made_up():
    """`made_up(seed, ...)`: a recording of plain decoding with scores and agreements at random, of any length."""

    def make(seed: int, n: int = 60, prompt: int = 12, n_drafts: int = 1, symbols: int = 9, **more) -> Recording:
        draw, depths = np.random.default_rng(seed), (1, 3, 5)
        tokens = draw.integers(0, symbols, prompt + n)
        if n > 20:
            half = n // 2
            tokens[-half:] = tokens[-2 * half : -half]  # the text repeats itself: lookup finds something
        teacher, shape = tokens[prompt:], (n_drafts, n, len(depths) + 1)
        drafted = np.where(draw.random(shape) < 0.6, teacher[None, :, None], draw.integers(-1, symbols, shape))
        drafted[..., -1] = teacher
        scores = {"max_prob": draw.random(shape), "entropy": -3 * draw.random(shape)}
        scores = {m: np.where(drafted < 0, -np.inf, of).round(2).astype(np.float32) for m, of in scores.items()}
        words = ("a", " b", "ם", "<i>", "\n", "🙂", "</script>", " ", "é")
        traces = TextTraces(
            "made up", N_BLOCKS, depths, prompt, tokens, tuple(words[t % 9] for t in tokens), teacher, drafted, scores,
            draw.random(shape[1:]).astype(np.float32), np.arange(0, 2 * n + 1, 2), draw.integers(0, symbols, 2 * n),
            draw.random((2 * n, len(depths) + 1)).astype(np.float32) / 2, dict(enumerate(words)),
            WeightReads(0.12, 0.28, {1: 0.05, 3: 0.06, 5: 0.07}),
        )  # fmt: skip
        own = (N_BLOCKS, float("nan"), False, False, 0)  # depth, score, drafted, accepted, asked
        rows = [(i, prompt + i, int(token), *own, i == n - 1) for i, token in enumerate(teacher)]
        stats = eelib.DecodingStats(n, 0, 0, n - 1, (prompt + n - 1,) * N_BLOCKS, (n,) * N_BLOCKS, {}, 1.0)
        trace = pd.DataFrame(rows, columns=list(TRACE_COLUMNS))
        return Recording(eelib.DecodingOutput(torch.as_tensor(tokens)[None], trace, stats), traces, **more)

    return make
