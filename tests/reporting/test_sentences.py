"""What is said of figures: true of the committed tables, of other outcomes, and of tables with holes."""

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tiny import PROJECT

from eelib import plotting, reporting
from eelib.errors import InvalidInputError
from eelib.reporting import wording
from eelib.workspace import read_note
from workflow import gallery

COMMITTED = {f"{path.parent.name}/{path.stem}": path for path in sorted((PROJECT / "figures").glob("*/*.csv"))}
KEPT = Path(__file__).parent / "tables"
"""Tables of one run, which stay as they are when another is published."""
PLACES = re.compile(
    r"depth|epsilon|threshold|tokens|step|score$|coverage$|delta|trials|sequences|_length|cases|parameters"
)
"""Columns that say where a value was measured, not what it is."""


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(KEPT / f"{name}.csv")


def scaled(name: str, column: str, factor: float, rows=slice(None)) -> pd.DataFrame:
    """A table with one value, and its interval, multiplied in some rows."""
    changed = table(name)
    columns = [c for c in (column, f"{column}_low", f"{column}_high") if c in changed]
    changed.loc[rows(changed) if callable(rows) else rows, columns] *= factor
    return changed


def said_of(name: str, plotted: pd.DataFrame) -> str:
    function, *arguments = gallery.SENTENCES[name.removesuffix("_full")]
    return getattr(reporting, function)(plotted, *arguments)


def test_every_figure_has_a_sentence():
    drawn = {name for name in plotting.__all__ if callable(getattr(plotting, name))}
    drawn = {name for name in drawn if inspect.signature(getattr(plotting, name)).return_annotation is Figure}
    said = {function for function, *_ in gallery.SENTENCES.values()}
    assert said == drawn - {"depth_shares"} | {"settled_shares"}
    public = {name: getattr(reporting, name) for name in reporting.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    assert said == {name for name, value in functions.items() if inspect.signature(value).return_annotation is str}


@pytest.mark.parametrize("path", COMMITTED.values(), ids=COMMITTED)
def test_committed_notes_say_what_their_tables_say(path):
    said = gallery.sentence(path)
    assert read_note(path.with_suffix(".md"))[0] == said
    assert said.startswith("**") and said.endswith((".", ".**")) and said.count("**") == 2
    assert 12 <= len(said.split()) <= 75 and "  " not in said and ".." not in said
    assert said in (path.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", COMMITTED.values(), ids=COMMITTED)
def test_a_table_in_memory_says_what_its_file_says(path):
    """The file has six digits; a share that is half a percent there may lie on either side of it in memory."""
    plotted = pd.read_csv(path)
    for side in (-1e-9, 1e-9):
        exact = plotted.assign(**{name: plotted[name] * (1 + side) for name in plotted.select_dtypes(float)})
        assert said_of(path.stem, exact) == said_of(path.stem, plotted)


@pytest.mark.parametrize("path", COMMITTED.values(), ids=COMMITTED)
def test_tables_that_were_joined_say_the_same(path):
    """Their index has the same numbers several times."""
    plotted = pd.read_csv(path)
    assert said_of(path.stem, plotted.set_index(np.zeros(len(plotted), int))) == said_of(path.stem, plotted)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(COMMITTED)), st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0]))
def test_what_is_missing_is_left_out(name, seed, share):
    plotted, random = pd.read_csv(COMMITTED[name]), np.random.default_rng(seed)
    for column in plotted.select_dtypes(float):
        if not PLACES.search(column):
            plotted[column] = plotted[column].mask(random.random(len(plotted)) < share)
    said = said_of(name.split("/")[1], plotted)
    assert said.startswith("**") and not re.search(r"\bnan\b|\bNone\b|\binf\b", said)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("00_quickstart", ["44%", "56%", "33% at depths 6, 12, 18 and 24"]),
        ("02_auroc", ["none of 12 cases", "+0.062 [+0.051, +0.073]", "`max_prob` in 11", "fails here"]),
        ("03_calibration", ["all 12 settings", "`cascade` in none of 12", "`risk` in none of 8"]),
        ("03_shift", ["does not hold", "0.69 [0.65, 0.74] on prose"]),
        ("03_violations", ["keeps its promise", "0.6% [0.2%, 1.3%] of 1,000"]),
        ("04_accuracy", ["81% of the blocks on hellaswag", "-0.10 [-0.21, +0.01] from 0.40"]),
        ("04_speed", ["1.16 [1.12, 1.36] times as fast with ε = 0.9 (95%"]),
        ("05_speed", ["0.82 [0.72, 0.93] times", "not the paper's 1.66", "fused + lookup, is 1.49 [1.42, 1.52]"]),
        ("05_curve_full", ["1.22 [1.14, 1.32] times the acceptance", "0.15 drafts per token", "reached at ε = 0.9"]),
        ("05_predicted", ["11 of 12", "+17% (12 x 6"]),
        ("06_tokens", ["252,893", "+0.016, +0.014, +0.019 and +0.018"]),
        ("07_attacks", ["0.85", "0.47", "54%", "84%", "74%", "85%"]),
        ("07_monitor", ["2.9% of the runs", "40 on prose and 20 on technical text"]),
        ("08_cost", ["is worse", "1.23 [1.18, 1.28]"]),
        ("08_exits", ["from 0.44", "to 0.59"]),
        (
            "10_claims",
            [
                "thresholds of 0.7, 0.8 and 0.95 give 1.02 [0.97, 1.14], 0.99",
                "not the claimed 1.5 to 3",
                "at 0.8 and 0.95 that is slower",
            ],
        ),
    ],
)
def test_numbers_are_those_of_the_table(name, numbers):
    said = said_of(name, table(name))
    assert all(number in said for number in numbers), said


def better_entropy(changed: pd.DataFrame) -> pd.DataFrame:
    """As if every other metric were worse than entropy, certainly."""
    lead = "auroc_less_entropy"
    rivals = changed.metric != "entropy"
    changed.loc[rivals, lead] = -changed.loc[rivals, lead].abs() - 0.01
    changed.loc[rivals & changed.p_corrected.notna(), "p_corrected"] = 0.001
    return changed


def of_last_training(changed: pd.DataFrame) -> pd.Series:
    return changed.tokens == changed.tokens.max()


OUTCOMES = [
    ("02_auroc", better_entropy(table("02_auroc")), "best in all 12 cases"),
    ("02_auroc", better_entropy(table("02_auroc")), "metric holds here"),
    ("03_calibration", scaled("03_calibration", "achieved", 1.3), "the exit agreement it promises in none of 12"),
    ("03_shift", table("03_shift").assign(missed_by=0), "holds on other text"),
    ("03_violations", scaled("03_violations", "rate", 50), "`risk` breaks its promise"),
    ("04_exits", scaled("04_exits", "speed_ratio", 3), "more speed than skipped blocks promise"),
    ("04_speed", scaled("04_speed", "speed_ratio", 0.5), "early exit is slower, at 0.58 [0.56, 0.68]"),
    ("05_acceptance", scaled("05_acceptance", "depth", -1), "not always"),
    ("05_speed", scaled("05_speed", "acceptance_ratio", 2), "in line with the paper's 1.66"),
    ("05_speed", scaled("05_speed", "acceptance_ratio", 3), "more than the paper's 1.66"),
    ("05_speed", scaled("05_speed", "speed_ratio", 0.5), "DSSD is slower, at 0.52 [0.46, 0.55]"),
    ("05_curve_full", scaled("05_curve_full", "relative_speed", 0.5), "is not reached"),
    ("05_predicted", table("05_predicted").assign(error=0.5), "for none of 12 policies"),
    ("06_tokens", scaled("06_tokens", "agreement", 0.5, of_last_training), "no longer helps"),
    ("07_attacks", table("07_attacks").assign(equal=0.75), "In 25% of the texts, an attack changes"),
    ("07_monitor", scaled("07_monitor", "share_of_runs", 0.4), "fewer than half have one on prose and technical text"),
    ("08_cost", scaled("08_cost", "ratio", 0.5), "full model is better"),
    ("08_exits", scaled("08_exits", "agreement", 0.5, lambda t: t.exits == "tuned"), "training lowers"),
    ("09_baselines", scaled("09_baselines", "speed_ratio", 0.5), "is slower"),
    ("10_claims", scaled("10_claims", "speed_ratio", 2), "the claimed 1.5 is within reach at 0.7, 0.8 and 0.95"),
]


@pytest.mark.parametrize(("name", "plotted", "words"), OUTCOMES)
def test_another_outcome_is_said_in_other_words(name, plotted, words):
    assert words in said_of(name, plotted)


def test_two_models():
    rows = [
        {"model": model, "parameters": n, "measure": of, "at": at, "value": v, "value_low": v - e, "value_high": v + e}
        for model, n, v in (("large", 10**9, 0.6), ("small", 10**8, 0.4))
        for of, at, e in (("agreement", "0.25", 0.01), ("blocks saved", "0.9", np.nan), ("speed", "DSSD", 0.3))
    ]
    said = reporting.agreement_and_speed(pd.DataFrame(rows))
    assert said.startswith("**Against small, large agrees more at 1 of 1 depths and less at none, saves more blocks")
    assert "gains more speed at none of 1 comparisons" in said
    assert "Only small" in reporting.agreement_and_speed(pd.DataFrame(rows[3:]))


def test_claims_of_several_models():
    rows = [
        {"model": model, "measure": of, "claim": of, "claimed_low": claimed, "value": v, "value_low": v - e,
         "value_high": v + e}
        for model, v in (("small", 0.2), ("large", 1.6))
        for of, claimed, e in (("speed", 1.5, 0.2), ("compute saved", 0.3, np.nan), ("accuracy", 0.1, 0.2))
    ]  # fmt: skip
    said = reporting.claims_by_size(pd.DataFrame(rows))
    assert "1 of 2 speeds, 1 of 2 savings of compute and all 2 accuracies are within reach on small and large" in said
    assert said.endswith("The quickest is large at 1.60 [1.40, 1.80] (speed claimed).")
    assert "within reach" not in reporting.claims_by_size(pd.DataFrame(rows).assign(value=np.nan))


def test_held_out_agreement_and_looked_up_tokens_are_said_where_they_are_there():
    said = reporting.training_curves(table("01_training").assign(held_out_agreement=0.25))
    assert said.endswith("on held-out text, on 25%, 25%, 25% and 25% at depths 6, 12, 18 and 24.")
    shares = pd.DataFrame({"depth": [0, 2, 30], "share_of_tokens": [0.2, 0.5, 0.3]})
    said = reporting.settled_shares(shares)
    assert said.startswith("**Heads settle 50% of the tokens and lookup in the text 20%**: 50% at depth 2. ")
    assert "none of the tokens**" in reporting.settled_shares(shares.assign(share_of_tokens=[0, 0, 1.0])[1:])


def test_batches():
    rows = [("plain", "", 1.0, 0), ("transformers", "", 0.7, np.nan), ("early exit", "all", 0.9, 0.4)]
    rows += [("early exit", "wait", 1.2, 0), ("DSSD", "wait", 0.8, 0)]
    plotted = pd.DataFrame(rows, columns=["kind", "gather", "speed_ratio", "exits_lost"]).assign(
        rows=8, tokens_per_second=9.0, speed_ratio_low=np.nan, speed_ratio_high=np.nan
    )
    said = reporting.speed_in_batches(plotted)
    assert said.startswith(
        "**At 8 rows, beside plain decoding, early exit (wait) is 1.20 times as fast, DSSD (wait) is slower"
    )
    assert "transformers is at 0.70.**" in said and said.endswith('With "all", 40% of its exits are lost.')
    few = plotted.assign(rows=1)  # transformers counts no calls
    few = few.assign(share_calls=[0.7, np.nan, 0.6, 0.6, 0.6], fitted=[True, None, True, True, True])
    many = plotted.assign(share_calls=[0.2, np.nan, 0.1, 0.1, 0.1], fitted=[False, None, False, False, False])
    many["predicted"] = [9.5, np.nan, 9.0, 12.0, 8.5]  # beside 9 measured
    said = reporting.speed_in_batches(pd.concat([few, many], ignore_index=True))
    assert "take 70% of plain decoding's time at 1 row and 20% at 8." in said
    assert said.endswith("Prices fitted to batches of 1 predict 3 of 4 others within 10%.")
    assert reporting.speed_in_batches(plotted.assign(speed_ratio=np.nan)) == wording.NOTHING


@pytest.mark.parametrize("name", sorted(gallery.SENTENCES))
def test_a_table_of_something_else(name):
    with pytest.raises(InvalidInputError, match="has no column"):
        said_of(name, pd.DataFrame({"something": [1.0]}))


def test_phrases():
    row = {"speed_ratio": 0.9, "speed_ratio_low": 0.8, "speed_ratio_high": 1.1}
    assert wording.pace(row) == "slower, at 0.90 [0.80, 1.10]" and wording.placed(row, "speed_ratio", 1) == 0
    assert wording.pace({"speed_ratio": 1.2}) == "1.20 times as fast"
    assert [wording.of_all(n, 3) for n in (0, 2, 3)] == ["none of 3", "2 of 3", "all 3"]
    assert wording.listed("abc") == "a, b and c" and wording.listed([]) == ""
    assert wording.spoken("LayerSkip, our heads, 6 x 2") == "LayerSkip with the same heads 6 x 2"
