import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import prompts, random_heads

import eelib
from eelib import timing
from eelib.errors import InvalidInputError
from eelib.evaluation import comparison


@pytest.fixture(scope="module")
def runs(llama):
    heads = random_heads(llama)

    def with_policy(policy):
        return lambda p: eelib.generate(llama, p, heads=heads, policy=policy, max_new_tokens=12, eos_token_id=None)

    decoders = {
        "plain": with_policy(eelib.Never()),
        "fixed": with_policy(eelib.FixedExit(3, 2)),
        "own": lambda p: llama.generate(p, do_sample=False, max_new_tokens=12, eos_token_id=None),
        "wrong": lambda p: torch.cat([p, torch.ones(1, 12, dtype=torch.long)], 1),
    }
    return comparison.compare(decoders, prompts(5), reference="plain", repeats=2)


def test_runs_hold_what_each_decoder_did(runs):
    assert len(runs) == 5 * 4 * 2 and (runs.emitted == 12).all() and (runs.seconds > 0).all()
    assert runs[runs.decoder == "plain"].speed_ratio.eq(1).all()
    assert runs.groupby("decoder").equal.all().to_dict() == {
        "plain": True,
        "fixed": True,
        "own": True,
        "wrong": False,
    }
    one = runs[(runs.decoder == "fixed") & (runs["repeat"] == 1)].iloc[2]
    assert one.drafted == one.output.stats.drafted and np.isnan(runs[runs.decoder == "own"].drafted).all()
    plain = runs[(runs.decoder == "plain") & (runs["repeat"] == 1) & (runs.prompt == one.prompt)].iloc[0]
    assert one.speed_ratio == pytest.approx(one.tokens_per_second / plain.tokens_per_second)


def test_summary(runs):
    table = comparison.summarise(runs).set_index("decoder")
    first = runs[(runs.decoder == "fixed") & (runs["repeat"] == 0)]
    assert table.acceptance_rate["fixed"] == first.accepted.sum() / first.drafted.sum()
    assert table.accepted_per_round["fixed"] == first.accepted.sum() / first.rounds.sum()
    assert table.tokens_per_round["fixed"] == (12 * 5 - 5) / first.rounds.sum()
    assert table.tokens_per_round["plain"] == 1 and np.isnan(table.acceptance_rate["plain"])
    assert table.equal["wrong"] == 0 and table.speed_ratio_low["plain"] == 1


def test_acceptance_ratio_is_paired_by_prompt():
    rows = [
        {"prompt": p, "decoder": c, "repeat": 0, "accepted": a * (p + 1), "drafted": 10 * (p + 1)}
        for p in range(6)
        for c, a in (("ours", 8), ("theirs", 4))
    ]
    found = comparison.acceptance_ratio(pd.DataFrame(rows), "ours", "theirs")
    assert found == pytest.approx({"acceptance_ratio": 2, "acceptance_ratio_low": 2, "acceptance_ratio_high": 2})


def test_relative_speed_is_paired_by_prompt():
    rows = [
        {"prompt": p, "decoder": c, "repeat": r, "tokens_per_second": v * (p + 1) * (1 + 0.1 * r)}
        for p in range(6)
        for r in range(3)
        for c, v in (("ours", 3), ("theirs", 2))
    ]
    found = comparison.relative_speed(pd.DataFrame(rows), "ours", "theirs")
    assert found == pytest.approx(dict.fromkeys(("relative_speed", "relative_speed_low", "relative_speed_high"), 1.5))


def test_bad_input():
    with pytest.raises(InvalidInputError, match="reference"):
        comparison.compare({"a": lambda p: p}, prompts(1), reference="reference")
    with pytest.raises(InvalidInputError):
        comparison.compare({"a": lambda p: p}, [], reference="a")


def test_interleaving_takes_turns():
    calls = []
    table = timing.interleaved({n: (lambda n=n: calls.append(n)) for n in "ab"}, repeats=3, warm_up=1)
    assert calls == list("abababab") and len(table) == 6
    assert {"processor", "cores", "torch"} <= set(timing.machine())


def test_peak_memory_is_what_a_call_holds_at_once():
    size = 200 * 2**20
    device = "cuda" if torch.cuda.is_available() else "cpu"  # whose memory is looked at
    peak = timing.peak_memory(lambda: torch.ones(size, dtype=torch.uint8, device=device).max())
    assert np.isnan(peak) or 0.8 * size < peak < 3 * size
    assert not timing.peak_memory(lambda: None) > 0.2 * size


@pytest.mark.parametrize("error", [OSError, StopIteration])
def test_peak_memory_where_the_system_does_not_say(monkeypatch, error):
    """No such file, or a file without the peak."""

    def silent(field):
        if field == "VmHWM":
            raise error
        return 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(timing, "_resident", silent)
    assert np.isnan(timing.peak_memory(lambda: pytest.fail("not to be called for nothing")))


def test_token_agreement_and_mismatches(llama):
    """Early exit by the first block's logit lens says other things than the model, and is found out."""

    def early(prompt):
        return eelib.generate(llama, prompt, policy=eelib.FixedExit(1, 1), verify=False, max_new_tokens=8)

    def plain(prompt):
        return llama.generate(prompt, do_sample=False, max_new_tokens=8)

    asked = prompts(3)
    runs = comparison.compare({"plain": plain, "early": early}, asked, reference="plain")
    agreed = comparison.token_agreements(llama, runs, asked)
    assert agreed["plain"] == 1 and agreed["early"] < 0.8
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers has one where no length is said
        found = comparison.mismatches(llama, runs, asked)
    assert set(found.decoder) == {"early"} and not found.near_tie.all() and (found.first_mismatch >= 0).all()
    assert comparison.mismatches(llama, runs[runs.decoder == "plain"], asked).empty


def timed(ratios: dict[str, float], texts: dict[str, list[int]], rounds: int = 2) -> pd.DataFrame:
    """Runs as `compare` has them, of one prompt of two tokens."""
    rows = [
        {
            "decoder": name, "prompt": 0, "repeat": repeat, "speed_ratio": ratio,
            "equal": texts[name] == texts["plain"], "emitted": len(texts[name]), "rounds": rounds,
            "output": torch.tensor([[8, 9, *texts[name]]]),
        }
        for name, ratio in ratios.items()
        for repeat in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("quick", "exact", "said"),
    [
        ((1.5, [1, 2, 3]), (1.2, [1, 2, 3]), "DSSD wrote the same 3 tokens 1.5 times as fast as plain decoding."),
        ((1.5, [1, 4, 3]), (1.2, [1, 2, 3]), "exact wrote the same 3 tokens 1.2 times as fast as plain decoding."),
        (
            (1.5, [1, 4, 3]), (1.2, [5, 2, 3]),
            "DSSD wrote 3 tokens 1.5 times as fast as plain decoding, the first 1 of them the same.",
        ),
        (
            (0.7, [1, 2, 3]), (0.6, [1, 2, 3]),
            "DSSD wrote the same 3 tokens 0.7 times as fast as plain decoding: 1.0 tokens a round do not pay for "
            "drafts and verification on this machine.",
        ),
    ],
)  # fmt: skip
def test_what_was_gained_is_said_in_a_sentence(quick, exact, said):
    ratios = {"plain": 1.0, "DSSD": quick[0], "exact": exact[0]}
    runs = timed(ratios, {"plain": [1, 2, 3], "DSSD": quick[1], "exact": exact[1]})
    assert comparison.speed_in_words(runs, ["DSSD", "exact"]) == said


def test_a_text_that_ends_sooner_is_the_same_so_far():
    runs = timed({"plain": 1.0, "DSSD": 1.0}, {"plain": [1, 2, 3], "DSSD": [1, 2]})
    said = comparison.speed_in_words(runs, ["DSSD"])
    assert said.startswith("DSSD wrote 2 tokens as fast as plain decoding, the first 2 of them the same: 0.5 tokens")


def test_batches_side_by_side(llama):
    """Of rows of different lengths: plain decoding's tokens from transformers too, and exits that one rule loses."""
    asked = [prompt[:, :n] for prompt, n in zip(prompts(3), (3, 7, 5), strict=True)]
    length = {"max_new_tokens": 10, "eos_token_id": None, "do_sample": False}
    sure = eelib.Confidence("max_prob", (0.25, 0.25, 0.25), back_off=False)

    def rows(gather, policy, **options):
        options |= {"policy": policy, "gather": gather, "heads": random_heads(llama)}
        return lambda given: eelib.generate(llama, given, **options, **length)

    decoders = {
        ("plain", ""): rows("each", eelib.Never()),
        ("transformers", ""): comparison.left_padded(llama, **length),
    }
    decoders |= {("DSSD", "each"): rows("each", sure)}
    decoders |= {("early exit", gather): rows(gather, sure, verify=False) for gather in ("each", "all")}
    runs = comparison.compare_batches(decoders, asked, (1, 3), repeats=2)
    assert len(runs) == 2 * 5 * 2 and (runs.emitted == 10 * runs.rows).all()
    assert runs[~runs.kind.eq("early exit")].equal.eq(1).all() and runs[runs.kind == "plain"].speed_ratio.eq(1).all()
    table = comparison.summarise_batches(runs).set_index(["rows", "kind", "gather"])
    assert table.exits_lost[3, "early exit", "all"] > 0 == table.exits_lost[3, "early exit", "each"]
    assert table.exits[3, "early exit", "all"] == table.exits[3, "early exit", "each"] > 0
    assert table.block_calls[3, "plain", ""] == table.block_calls[1, "plain", ""] == 10 * 6
    with pytest.raises(InvalidInputError, match="3 prompts for batches of"):
        comparison.compare_batches(decoders, asked, (4,))
