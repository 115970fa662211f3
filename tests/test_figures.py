import matplotlib.pyplot as plt
import pandas as pd
import pytest

from eelib import figures
from eelib.workspace import Workspace, written_whole


@pytest.fixture(autouse=True)
def style():
    figures.use_style()
    yield
    plt.close("all")


def test_three_files_at_final_size_with_fonts_embedded(tmp_path):
    figure, (axes, _) = figures.panels(2)
    table = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.6], "y_low": [0.4, 0.5], "y_high": [0.6, 0.7]})
    figures.band(axes, table, "x", "y", marker="o")
    figures.save_figure(figure, tmp_path, "01_name", table)
    assert {p.name for p in tmp_path.iterdir()} == {"01_name.pdf", "01_name.png", "01_name.csv"}
    assert pd.read_csv(tmp_path / "01_name.csv").equals(table)
    assert (
        b"FontType 42" in (tmp_path / "01_name.pdf").read_bytes()
        or b"/TrueType" in (tmp_path / "01_name.pdf").read_bytes()
        or b"CIDFontType2" in (tmp_path / "01_name.pdf").read_bytes()
    )
    assert tuple(figure.get_size_inches()) == (5.5, 2.2)


def test_a_failed_write_leaves_the_earlier_result(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_depths_differ_by_colour_and_dash():
    style = figures.depth_style([6, 12, 18, 24])
    assert len({str(s["linestyle"]) for s in style.values()}) == 4 and len({s["color"] for s in style.values()}) == 4


def test_workspace_folders_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    here = Workspace("m").heads
    monkeypatch.chdir(tmp_path)
    assert Workspace("m").heads == here and here.parts[-3:] == ("data", "heads", "m")
    assert Workspace("m", tmp_path).figures == tmp_path / "figures" / "m"


def test_an_interval_beside_its_value_is_drawn_as_far_as_it_goes():
    figure, (axes,) = figures.panels(1)
    figures.band(axes, pd.DataFrame({"x": [1.0], "y": [0.5], "y_low": [0.6], "y_high": [0.7]}), "x", "y")
    figure.canvas.draw()
