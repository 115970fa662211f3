"""Timings of pieces, and the speed expected from them."""

import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from tiny import N_BLOCKS, after, own_text, prompts, random_heads, tiny_model

import eelib
from eelib.backbone import graphs
from eelib.errors import InvalidInputError
from eelib.evaluation.latency import POSITIONS, Timings, _per_block, predict_batches, time_pieces
from eelib.evaluation.replay import Work, replay_policy

TIMED = Timings(
    {
        ("prefill", 7): 0.5, ("prefill", 9): 0.7, ("span", 1): 0.1, ("span", 4): 0.4, ("head", 2): 0.05,
        ("unembedding", 1): 0.2, ("unembedding", 2): 0.3, ("call", 1): 0.02, ("call", 4): 0.02, ("call", 8): 0.04,
        ("block", 1): 0.1, ("block", 2): 0.15, ("block", 4): 0.2, ("block", 8): 0.4,
    },
    per_round=0.01,
    per_token=0.001,
)  # fmt: skip


@pytest.mark.parametrize(
    "piece, seconds",
    [
        (("prefill", 8), 0.6),
        (("span", 2), 0.2),
        (("head", 2), 0.05),
        (("unembedding", 4), 0.5),  # on from the last two
        (("blocks", 0, 2, 1), 0.02 + 2 * 0.1),
        (("blocks", 2, 6, 3), 0.02 + 4 * 0.175),
        (("blocks", 2, 6, 12), 0.06 + 4 * 0.6),
    ],
)
def test_seconds_of_a_piece(piece, seconds):
    assert TIMED.seconds(Work(calls=Counter({piece: 2}))) == pytest.approx(2 * seconds)


def test_seconds_add_up():
    work = Work(emitted=10, rounds=5, drafted=8, accepted=4, calls=Counter({("head", 2): 8}))
    assert TIMED.seconds(work) == pytest.approx(8 * 0.05 + 5 * 0.01 + 18 * 0.001)
    assert TIMED.tokens_per_second(work) == pytest.approx(10 / TIMED.seconds(work))
    other = Work(calls=Counter({("head", 4): 1}))
    with pytest.raises(InvalidInputError, match="depth 4"):
        TIMED.seconds(other)
    assert TIMED.with_heads(TIMED, [4]).seconds(other) == pytest.approx(0.05)


def test_timings_of_a_slower_minute():
    work = Work(emitted=10, rounds=5, drafted=8, accepted=4, calls=Counter({("head", 2): 8, ("blocks", 2, 6, 3): 5}))
    slow = TIMED.scaled(2.0)
    assert slow.seconds(work) == pytest.approx(2 * TIMED.seconds(work)) and slow.scale == 2
    assert slow.scaled(0.5).scale == pytest.approx(1)
    # Heads that were timed in a slower minute count as what they take in this one.
    head = Work(calls=Counter({("head", 4): 1}))
    assert TIMED.with_heads(slow, [4]).seconds(head) == pytest.approx(0.05)


def test_timing_meets_every_piece_and_changes_no_token(llama):
    heads, asked = random_heads(llama), prompts(3)
    timings = time_pieces(llama, heads, asked, max_new_tokens=16)
    expected = {(piece, n) for piece in ("call", "block", "span", "unembedding") for n in POSITIONS}
    expected |= {("head", depth) for depth in heads.depths} | {("prefill", 7)}
    assert set(timings.pieces) == expected
    assert all(seconds > 0 for (piece, _), seconds in timings.pieces.items() if piece != "call")
    assert timings.per_round >= 0
    table = timings.table()
    assert len(table) == len(timings.pieces) and {"block", "head at 5", "prefill"} <= set(table.piece)
    single = time_pieces(llama, heads, asked[:2], positions=(1,), max_new_tokens=16)
    assert {n for piece, n in single.pieces if piece == "block"} == {1} and ("head", 3) in single.pieces
    with pytest.raises(InvalidInputError, match="at least two"):
        time_pieces(llama, heads, asked[:1])


def test_blocks_are_recorded_before_they_are_timed(monkeypatch):
    """Not after some calls, as in decoding: those that record and compare take many times as long."""
    monkeypatch.setattr(graphs, "RECORD_AFTER", 10**9)
    model, made = tiny_model("llama", seed=4), []
    monkeypatch.setattr(graphs, "_record", lambda *call, record=graphs._record: made.append(call) or record(*call))
    asked = prompts(3, 7)
    for number, given in enumerate((asked[:2], asked[1:])):
        before = len(made)
        time_pieces(model, random_heads(model), given, max_new_tokens=12)
        assert (len(made) > before) == (number == 0), "all is recorded while the first prompt warms up"


@pytest.fixture
def priced(monkeypatch):
    """A model and heads on a clock that only their calls move, by so much a call and a position."""
    model, now = tiny_model("llama", seed=3), 0.0
    model.generation_config.eos_token_id = None  # all texts are of one length, so all minutes of one speed
    heads = random_heads(model)

    def charge(module, of_call, of_position=0.0):
        def pay(module, given):
            nonlocal now
            ids, states = given[0].numel(), given[0].shape[:-1].numel()
            now += of_call + of_position * (states if given[0].is_floating_point() else ids)

        module.register_forward_pre_hook(pay)

    eelib.Backbone.of(model)  # found before anything has its price
    charge(model.model.embed_tokens, 0.5, 0.25)
    charge(model.lm_head, 7.0, 0.5)
    for block in model.model.layers:
        charge(block, 2.0, 0.125)
    for depth, price in zip(heads.depths, (1.0, 3.0, 5.0), strict=True):
        charge(heads.maps[str(depth)], price)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    return model, heads


def test_expected_speed_of_a_policy(priced):
    """Nothing is charged twice and nothing forgotten: on such a clock the expected seconds are the measured ones."""
    (model, heads), asked = priced, prompts(4)
    timings = time_pieces(model, heads, asked[:2], max_new_tokens=20)
    for n in POSITIONS:
        assert timings.pieces["block", n] == pytest.approx(2 + 0.125 * n)
        assert timings.pieces["call", n] == pytest.approx(0, abs=1e-9)
    assert timings.pieces["unembedding", 4] == 9.0
    assert timings.pieces["head", 3] == 3.0 + 7.0 + 0.5 and timings.per_round == timings.per_token == 0
    length = {"max_new_tokens": 20, "eos_token_id": None}
    texts = [own_text(model, prompt, **length)[0] for prompt in asked]
    loss_mask = after(6, texts)
    for mask in loss_mask:
        mask[-1] = False
    traces = eelib.record_traces(model, heads, texts, loss_mask=loss_mask)
    for policy in (eelib.Never(), eelib.FixedExit(3, 3), eelib.FixedExit(1, 2)):
        runs = [eelib.generate(model, p, heads=heads, policy=policy, **length).stats for p in asked]
        work = replay_policy(policy, traces, N_BLOCKS, [7] * len(asked))
        assert timings.seconds(work) == pytest.approx(sum(s.seconds for s in runs))


def test_rare_calls_count_little():
    """A line through calls of several lengths; a disturbed one, all there is of its length, hardly bends it."""
    seconds = {(0, 2, 1): [5.0] * 40, (2, 6, 1): [9.0] * 40, (0, 6, 1): [26.0], (0, 6, 8): [12.0] * 9}
    pieces = _per_block(seconds)
    assert pieces["call", 1] == pytest.approx(1, abs=0.2) and pieces["block", 1] == pytest.approx(2, abs=0.1)
    assert pieces["call", 8] == 0 and pieces["block", 8] == pytest.approx(2), "one length: by block alone"


def test_other_jobs_that_come_and_go_leave_the_pieces_as_they_are(priced, monkeypatch):
    """For every second stretch of the clock, all takes three times as long."""
    (model, heads), asked = priced, prompts(3)
    quiet = time_pieces(model, heads, asked, max_new_tokens=20)
    now = time.perf_counter
    long, start = 500.0, now()

    def disturbed():
        whole, rest = divmod(now() - start, long)
        return 2 * long * whole + rest + 2 * max(0.0, rest - long / 2)

    monkeypatch.setattr(time, "perf_counter", disturbed)
    found = time_pieces(model, heads, asked, max_new_tokens=20).pieces
    assert found == {key: pytest.approx(seconds, rel=0.02, abs=0.1) for key, seconds in quiet.pieces.items()}


def test_batches_are_predicted_from_their_counts():
    """Prices known from small batches tell the seconds of larger ones, where nothing else takes time."""
    counts = {"block_calls": 30, "block_positions": 0.5, "head_calls": 10, "head_positions": 0.2, "tokens": 1}
    random, rows = np.random.default_rng(0), []
    for size in (1, 2, 4, 8):
        for kind in ("plain", "early exit", "DSSD"):
            row = {name: random.integers(1, 40) * size for name in counts} | {
                "rows": size,
                "kind": kind,
                "gather": "each",
            }
            rows.append(
                row | {"emitted": 40 * size, "seconds": sum(price * row[name] for name, price in counts.items())}
            )
    rows.append({"rows": 8, "kind": "transformers", "gather": "", "emitted": 320, "seconds": 9.0})  # it does not count
    table = predict_batches(pd.DataFrame(rows), (1, 2, 4))
    assert len(table) == 12 and table.fitted.sum() == 9
    np.testing.assert_allclose(table.predicted, table.measured, rtol=1e-6)
    shares, row = table.filter(like="share_"), rows[0]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    spent = [price * row[name] / row["seconds"] for name, price in counts.items()]
    calls, positions, *heads, tokens = spent
    np.testing.assert_allclose(shares.iloc[0], [calls, positions, sum(heads), tokens])
    with pytest.raises(InvalidInputError, match="expected sizes among"):
        predict_batches(pd.DataFrame(rows), (16,))
