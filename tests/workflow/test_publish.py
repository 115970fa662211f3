"""README and docs say what their tables say, and no number in them was typed by hand."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tiny import PROJECT

from eelib.errors import InvalidInputError
from workflow.publish import Tables, check, publish, render

TEMPLATES = sorted((PROJECT / "docs" / "templates").rglob("*.md"))


def test_documents_are_what_their_templates_and_tables_make():
    assert check(PROJECT) == []


@pytest.fixture
def copy(tmp_path) -> Path:
    """A small project: two templates, a table, and what was published of them."""
    (tmp_path / "docs" / "templates" / "docs").mkdir(parents=True)
    (tmp_path / "figures" / "small").mkdir(parents=True)
    table = pd.DataFrame(
        {
            "decoder": ["plain", "DSSD"],
            "speed_ratio": [1.0, 1.49],
            "speed_ratio_low": [1, 1.42],
            "speed_ratio_high": [1, 1.52],
        }
    )
    table.to_csv(tmp_path / "figures" / "small" / "05_speed.csv", index=False)
    (tmp_path / "figures" / "small" / "05_speed.md").write_text(
        "**Quicker.** By a half.\n\n<sub>today</sub>\n", "utf-8"
    )
    (tmp_path / "docs" / "templates" / "README.md").write_text(
        'DSSD: {{ interval("small/05_speed", "speed_ratio", decoder="DSSD") }}. {{ sentence("small/05_speed") }}\n',
        "utf-8",
    )
    (tmp_path / "docs" / "templates" / "docs" / "speed.md").write_text(
        '{{ markdown("small/05_speed", {"decoder": "", "speed_ratio": "of plain"}) }}\n', "utf-8"
    )
    publish(tmp_path)
    return tmp_path


def test_numbers_come_from_tables(copy):
    assert (copy / "README.md").read_text("utf-8") == "DSSD: 1.49 [1.42, 1.52]. **Quicker.** By a half.\n"
    lines = (copy / "docs" / "speed.md").read_text("utf-8").splitlines()
    assert lines == [
        "|  | of plain |", "| --- | --- |", "| plain | 1.00 [1.00, 1.00] |", "| DSSD | 1.49 [1.42, 1.52] |",
    ]  # fmt: skip
    assert check(copy) == []


def test_what_a_batch_took_is_read_from_its_records(copy):
    """The last figure of a notebook says it; those drawn in JupyterLab, and records older than this, say nothing."""
    folder = copy / "figures" / "small" / "provenance"
    folder.mkdir()
    batch = {"notebook": "05_acceptance.ipynb", "parameters": {}, "config": {"file": "config/offline.yaml"}}
    about = {"machine": {"processor": "a CPU", "threads": 2}, "made": "2026-11-30T21:11:09Z", "commit": "721d08d"}
    took = {"minutes": 5.5, "peak_gib": 1.5}
    for name, record in {
        "05_acceptance": {"run": batch, "so_far": took | {"minutes": 4}},
        "05_speed": {"run": batch, "so_far": took},
        "05_speed_full": {"run": batch | {"parameters": {"suffix": "_full"}}, "so_far": {"minutes": 18}},
        "04_exits": {"run": batch},
        "03_shift": {"run": {"notebook": "03_calibration.ipynb"}, "so_far": took},
        "02_roc": {"run": None, "so_far": took},
        "01_training": {"run": batch | {"notebook": "01_train_heads.ipynb"}, "so_far": {"minutes": 9}},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(record | about), "utf-8")
    publish(copy)
    assert (copy / "docs" / "results" / "runs.csv").read_text("utf-8").splitlines()[1:] == [
        'small,01_train_heads,9.0,,"a CPU, 2 threads",2026-11-30,721d08d',
        'small,05_acceptance,5.5,1.5,"a CPU, 2 threads",2026-11-30,721d08d',
        'small,05_acceptance_full,18.0,,"a CPU, 2 threads",2026-11-30,721d08d',
    ]
    assert check(copy) == []


@pytest.mark.parametrize("name", ["README.md", "docs/speed.md", "docs/results/small/05_speed.csv"])
def test_one_changed_digit_is_found(copy, name):
    path = copy / name
    path.write_text(path.read_text("utf-8").replace("1.42", "1.43"), "utf-8")
    faults = check(copy)
    assert faults and name.removeprefix("docs/") in "".join(faults)


def test_a_local_run_changes_no_document(copy):
    path = copy / "figures" / "small" / "05_speed.csv"
    path.write_text(path.read_text("utf-8").replace("1.42", "1.43"), "utf-8")
    assert check(copy) == []
    publish(copy)
    assert "1.43" in (copy / "README.md").read_text("utf-8") and check(copy) == []


def test_what_templates_compute_from_rows(copy):
    (copy / "docs" / "templates" / "README.md").write_text(
        '{% set table = rows("small/05_speed") %}{{ table.speed_ratio.max() | form(".0%") }} of {{ table | length }}, '
        '{{ format_interval(table.iloc[1], "speed_ratio", ".1f") }}, {{ setting(0.8) }}, {{ cited(1.66) }}',
        "utf-8",
    )
    assert render(copy)[Path("README.md")] == "149% of 2, 1.5 [1.4, 1.5], 0.8, 1.66"


def test_a_table_added_by_hand_is_found(copy):
    shutil.copy(copy / "docs" / "results" / "small" / "05_speed.csv", copy / "docs" / "results" / "other.csv")
    assert check(copy) == ["docs/results/other.csv: not what was published"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ('value("small/06", "speed_ratio")', "no table small/06"),
        ('value("small/05_speed", "speed_ratio", decoder="other")', "0 rows"),
        ('value("small/05_speed", "speed_ratio", who="DSSD")', r"no columns \['who'\]"),
        ('rows("small/05_speed").query("who > 1")', "who"),
        ("nothing_known", "undefined"),
    ],
)
def test_what_no_table_has_is_an_error_that_names_the_template(copy, asked, says):
    (copy / "docs" / "templates" / "README.md").write_text("{{ " + asked + " }}", "utf-8")
    with pytest.raises(InvalidInputError, match=f"docs/templates/README.md: .*{says}"):
        render(copy)
    with pytest.raises(InvalidInputError):
        publish(copy)
    assert "1.49" in (copy / "README.md").read_text("utf-8"), "a failed run leaves what was there"


TYPED = re.compile(r"\d+\.\d+|\d+ ?(?:%|times|minutes?|seconds?|ms|µs|tokens/s|[GM]i?B|points?)(?!\w)")
NO_RESULT = re.compile(
    r"```.*?```|`[^`\n]*`|\{\{.*?\}\}|\{%.*?%\}|\]\([^)]*\)|https?://\S+"  # code, placeholders, links
    r"|arXiv:? ?\d+\.\d+|Apache-2\.0|Qwen2\.5|\d+(?:\.\d+)?[BM]\b|(?:Python|transformers|torch) [\d.]+(?: to [\d.]+)?",
    re.DOTALL,
)


def typed_numbers(text: str) -> list[str]:
    return TYPED.findall(NO_RESULT.sub(" ", text))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_result_is_typed_by_hand(path):
    """A number that was chosen, not measured, is written {{ setting(0.8) }}."""
    assert typed_numbers(path.read_text(encoding="utf-8")) == []


def test_typed_numbers_are_seen():
    assert typed_numbers("It is 1.5 times as fast, takes 20 minutes, and 30% of {{ setting(0.8) }} `2.5`.") == [
        "1.5", "20 minutes", "30%",
    ]  # fmt: skip
    assert not typed_numbers("Qwen2.5-Coder-0.5B on Python 3.11, [a](b_1.5.md), arXiv 2407.21082, 5 blocks")


def test_a_table_name_is_a_path_below_the_results(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no table \.\./x"):
        Tables(tmp_path).rows("../x")
