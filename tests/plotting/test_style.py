import importlib
import re
import sys

import pandas as pd
import pytest

from eelib import plotting, timing
from eelib.errors import MissingExtraError
from eelib.timing import machine
from eelib.workspace import read_note


def test_four_files_at_final_size_with_fonts_embedded(tmp_path):
    figure, (axes, _) = plotting.panels(2)
    table = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.6], "y_low": [0.4, 0.5], "y_high": [0.6, 0.7]})
    plotting.band(axes, table, "x", "y", marker="o")
    plotting.save_figure(figure, tmp_path, "01_name", table, "**Up.** From 0.5 to 0.6.")
    assert {p.name for p in tmp_path.iterdir()} == {
        "provenance",
        *(f"01_name.{kind}" for kind in ("pdf", "png", "csv", "md")),
    }
    said, provenance = read_note(tmp_path / "01_name.md")
    assert said == "**Up.** From 0.5 to 0.6." and str(machine()["processor"]) in provenance
    assert pd.read_csv(tmp_path / "01_name.csv").equals(table)
    assert (
        b"FontType 42" in (tmp_path / "01_name.pdf").read_bytes()
        or b"/TrueType" in (tmp_path / "01_name.pdf").read_bytes()
        or b"CIDFontType2" in (tmp_path / "01_name.pdf").read_bytes()
    )
    assert tuple(figure.get_size_inches()) == (5.5, 2.2)


def test_depths_differ_by_colour_and_dash():
    style = plotting.depth_style([6, 12, 18, 24])
    assert len({str(s["linestyle"]) for s in style.values()}) == 4 and len({s["color"] for s in style.values()}) == 4


def test_an_interval_beside_its_value_is_drawn_as_far_as_it_goes():
    figure, (axes,) = plotting.panels(1)
    plotting.band(axes, pd.DataFrame({"x": [1.0], "y": [0.5], "y_low": [0.6], "y_high": [0.7]}), "x", "y")
    figure.canvas.draw()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    monkeypatch.delitem(sys.modules, "eelib.plotting")
    with pytest.raises(MissingExtraError, match=r"pip install 'eelib\[paper\]'"):
        importlib.import_module("eelib.plotting")


def test_provenance_names_a_commit_only_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "commit", timing.commit.__wrapped__)  # asked once a process otherwise
    monkeypatch.chdir(tmp_path)
    assert "commit" not in timing.provenance() and re.match(r"\d{4}-\d\d-\d\d · .+, \d+ threads?$", timing.provenance())
    monkeypatch.setenv("PATH", "")
    assert "commit" not in timing.provenance()
    monkeypatch.setattr(timing, "commit", lambda: "abc1234")
    assert timing.provenance().endswith(" · commit abc1234")
