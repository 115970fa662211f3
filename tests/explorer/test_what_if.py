"""The browser replays and prices as Python does: to the round, and to the last call."""

import json

import numpy as np
import pytest
from tiny import N_BLOCKS, PROJECT, prompts, random_heads

import eelib
from eelib.evaluation import Timings, WeightReads
from eelib.evaluation.replay import replay_policy
from eelib.explorer import Recording, trace_text
from eelib.explorer.recording import prices_of

N_CASES = 240
EXPLORER = PROJECT / "eelib" / "explorer"


def noting(policy: eelib.Policy, log: list) -> eelib.Policy:
    """The same policy, which notes drafted and accepted of each round."""
    kind = type(policy)

    class Noting(kind):
        def observe(self, state, outcome):
            log.append([outcome.drafted, outcome.accepted])
            kind.observe(self, state, outcome)

    return Noting(**{name: getattr(policy, name) for name in policy.__dataclass_fields__})


def drawn_policy(draw: np.random.Generator, recording: Recording) -> eelib.Policy:
    traces = recording.traces
    lookup = eelib.Lookup(int(draw.integers(1, 9)), draw.choice([0.2, 0.4, 0.6]), ((4, 3, 2), (2, 1))[draw.integers(2)])
    kind = draw.choice(["never", "fixed", "lookup", "confidence"], p=[0.05, 0.2, 0.15, 0.6])
    if kind == "never":
        return eelib.Never()
    if kind == "fixed":
        return eelib.FixedExit(int(draw.choice(traces.depths)), int(draw.integers(1, 9)))
    if kind == "lookup":
        return lookup
    metric = draw.choice(list(traces.scores))
    scores = traces.scores[metric][0]
    thresholds = [float(draw.choice(scores[np.isfinite(scores)])) for _ in traces.depths]  # ties with scores, too
    thresholds = [None if draw.random() < 0.2 else threshold for threshold in thresholds]
    thresholds[0] = float("-inf") if draw.random() < 0.1 else thresholds[0]
    return eelib.Confidence(
        str(metric), tuple(thresholds), int(draw.integers(1, 13)), back_off=bool(draw.random() < 0.5),
        lookup=lookup if draw.random() < 0.5 else None, price=float(draw.choice([0, 0.07, 0.2, 0.355, 1.5])),
    )  # fmt: skip


def drawn_timings(draw: np.random.Generator) -> Timings:
    pieces = {("head", depth): draw.random() for depth in (1, 3, 5)}
    for n in (1, 2, 4, 8):
        pieces |= {("span", n): draw.random(), ("unembedding", n): draw.random(), ("prefill", 3 * n): draw.random()}
        pieces |= {("call", n): draw.random(), ("block", n): draw.random()}
    return Timings(pieces, draw.random(), draw.random())


def browser(node, tmp_path, runs: list[Recording], cases: list[dict]) -> list[dict]:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"runs": [run.to_json() for run in runs], "cases": cases}, allow_nan=False), "utf-8")
    return json.loads(node(PROJECT / "tests/explorer/replay_cases.mjs", EXPLORER / "what_if.mjs", path))


@pytest.fixture(scope="module")
def runs(recording, made_up):
    """Texts of one to 150 tokens; of one, heads tell the first three drafts in a row apart; lookup finds something."""
    return [recording, made_up(1, n=1), made_up(2), made_up(3, n=150, n_drafts=3), made_up(4, n=90, symbols=3)]


def test_what_the_sliders_say_is_what_python_replays(node, tmp_path, runs):
    draw, cases, expected, kinds = np.random.default_rng(0), [], [], set()
    begin = [run.settings for run in runs]
    for number in range(N_CASES):
        recording = runs[number % len(runs)]
        traces, policy, log = recording.traces, drawn_policy(draw, recording), []
        work = replay_policy(
            noting(policy, log), traces.table(), N_BLOCKS, [traces.prompt_length], [recording.output.sequences[0]]
        )
        timings = drawn_timings(draw)
        prices = [prices_of(traces.reads), prices_of(timings)]
        settings = begin[number % len(runs)] | said(policy)
        cases.append({"run": number % len(runs), "settings": settings, "prices": prices})
        calls = {",".join(map(str, key)): times for key, times in work.calls.items()}
        counts = {name: getattr(work, name) for name in ("emitted", "rounds", "drafted", "accepted")}
        expected.append([counts | {"calls": calls, "each": log}, [traces.reads.passes(work), timings.seconds(work)]])
        kinds |= {(type(policy).__name__, work.accepted > 0)}
    found = browser(node, tmp_path, runs, cases)
    for case, (counts, costs), own in zip(cases, expected, found, strict=True):
        assert {name: own[name] for name in counts} == counts, case["settings"]
        assert own["costs"] == pytest.approx(costs, rel=1e-9), case["settings"]
    assert {(kind, True) for kind in ("Confidence", "FixedExit", "Lookup")} <= kinds, "all kinds drafted something"


def said(policy: eelib.Policy) -> dict:
    """Settings of the sliders that say a policy, written out by hand."""
    if isinstance(policy, eelib.Never):
        return {"kind": "never"}
    if isinstance(policy, eelib.FixedExit):
        return {"kind": "fixed", "depth": policy.depth, "draft_length": policy.draft_length}
    lookup = policy if isinstance(policy, eelib.Lookup) else policy.lookup
    looked_up = lookup and {"max_draft": lookup.max_draft, "record": lookup.record, "sizes": list(lookup.sizes)}
    if isinstance(policy, eelib.Lookup):
        return {"kind": "lookup", "lookup": looked_up}
    thresholds = [t if t is None or np.isfinite(t) else -1e308 for t in policy.thresholds]
    return {
        "kind": "confidence", "metric": policy.metric, "thresholds": thresholds, "max_draft": policy.max_draft,
        "back_off": policy.back_off, "price": policy.price, "lookup": looked_up, "deepest": None, "epsilon": None,
    }  # fmt: skip


POLICIES = [
    eelib.Never(),
    eelib.FixedExit(3, 4),
    eelib.Lookup(6, record=0.2, sizes=(2, 1)),
    eelib.Confidence("max_prob", (0.3, 0.25, 0.2), max_draft=5),
    eelib.Confidence("entropy", (-3.0, None, -2.5), max_draft=3, back_off=False, lookup=eelib.Lookup(4)),
]


def test_the_recorded_run_is_replayed_to_the_engines_counts(node, tmp_path, decoded):
    """Whatever the policy: positions and calls of every block, and of every head, are those that the engine counted."""
    model, tokenizer, _, _, _ = decoded
    runs = []
    for kind, policies in (("affine", POLICIES), ("fused", [eelib.FixedExit(3, 4), POLICIES[3]])):
        heads = random_heads(model, scale=0.02, kind=kind)
        for policy in policies:
            length = {"max_new_tokens": 30, "eos_token_id": 40 if kind == "affine" else None}
            output = eelib.generate(model, prompts(1, seed=3)[0], heads=heads, policy=policy, **length)
            runs.append(Recording(output, trace_text(model, tokenizer, output, heads), policy))
    found = browser(node, tmp_path, runs, [{"run": i, "settings": None, "prices": []} for i in range(len(runs))])
    for run, own in zip(runs, found, strict=True):
        stats, depths = run.output.stats, run.output.trace
        assert [own[n] for n in ("emitted", "rounds", "drafted", "accepted")] == [
            stats.emitted, stats.rounds, stats.drafted, stats.accepted,
        ]  # fmt: skip
        assert own["settled"] == depths.depth[~depths.drafted | depths.accepted].tolist()
        assert of_blocks(own["calls"]) == (stats.block_positions, stats.block_calls), run.policy
        heads = {depth: own["calls"].get(f"head,{depth}", 0) for depth in stats.head_positions}
        assert heads == stats.head_positions, run.policy


def of_blocks(calls: dict) -> tuple[tuple, tuple]:
    """Positions and calls of each block."""
    positions, times = np.zeros(N_BLOCKS, int), np.zeros(N_BLOCKS, int)
    for key, n in calls.items():
        piece, *of = key.split(",")
        if piece in ("blocks", "prefill"):
            first, last, count = map(int, of) if piece == "blocks" else (0, N_BLOCKS, int(of[0]))
            positions[first:last] += count * n
            times[first:last] += n
    return tuple(positions.tolist()), tuple(times.tolist())


def test_early_exit_is_replayed_too(node, tmp_path, decoded):
    model, tokenizer, heads, policy, _ = decoded
    options = {"heads": heads, "policy": policy, "verify": False, "max_new_tokens": 24, "eos_token_id": None}
    output = eelib.generate(model, prompts(1)[0], **options)
    run = Recording(output, trace_text(model, tokenizer, output, heads), policy)
    (own,) = browser(node, tmp_path, [run], [{"run": 0, "settings": None, "prices": []}])
    assert own["settled"] == output.trace.depth.tolist() and "early exit" in run.why_no_what_if
    assert of_blocks(own["calls"]) == (output.stats.block_positions, output.stats.block_calls)


def test_weights_read_are_those_of_the_heads(decoded, recording):
    model, _, heads, *_ = decoded
    assert recording.traces.reads == WeightReads.of(model, heads)
