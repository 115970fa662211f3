"""The gallery: a page from what lies in a folder, and sentences written anew from the tables."""

import pytest

from eelib.errors import InvalidInputError
from eelib.workspace import provenance as provenance_of
from eelib.workspace import read_note, recorded, write_note
from workflow import gallery


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "00_quickstart.csv").write_text("depth,share_of_tokens\n2,0.25\n4,0.75\n", encoding="utf-8")
    write_note(tmp_path / "00_quickstart.md", "**Old.**", "2026-01-02 · a machine · commit abc1234")
    write_note(tmp_path / "05_speed_full.md", "**DSSD.**", "2026-01-03 · another")
    (tmp_path / "notes.md").write_text("not of a figure", encoding="utf-8")
    return tmp_path


def test_a_figure_its_sentence_its_links_and_where_it_comes_from(folder):
    text = gallery.assemble(folder).read_text(encoding="utf-8")
    assert text.index("notebooks/00_quickstart.ipynb): Quickstart") < text.index("![00_quickstart](00_quickstart.png)")
    assert text.index("notebooks/05_acceptance.ipynb)") < text.index("![05_speed_full](05_speed_full.png)\n\n**DSSD.**")
    links = "[CSV](00_quickstart.csv) · [PDF](00_quickstart.pdf)"
    assert f"<sub>00_quickstart: {links} · 2026-01-02 · a machine · commit abc1234</sub>" in text
    assert "not of a figure" not in text
    assert gallery.assemble(folder).read_text(encoding="utf-8") == text, "the page is none of its own figures"


def test_sentences_written_anew_keep_where_they_come_from(folder, capsys):
    (folder / "05_speed_full.md").unlink()
    with recorded(folder) as temporary:
        for name in ("00_quickstart.csv", "00_quickstart.md"):
            (temporary / name).write_bytes((folder / name).read_bytes())
    assert gallery.main([str(folder), "--retell"]) == 0
    said, provenance = read_note(folder / "00_quickstart.md")
    assert said.startswith("**Heads settle 25%") and provenance == "2026-01-02 · a machine · commit abc1234"
    assert said in (folder / "README.md").read_text(encoding="utf-8")
    assert {provenance_of(file).state for file in folder.glob("00_*")} == {"recorded"}, "the note as it is now"
    (folder / "00_quickstart.md").write_text("by hand", encoding="utf-8")
    assert provenance_of(folder / "00_quickstart.md").state == "changed"
    assert gallery.main([str(folder / "missing")]) == 1 and "is no folder" in capsys.readouterr().err


def test_what_is_no_note_and_no_figure(folder):
    with pytest.raises(InvalidInputError, match="is no note"):
        read_note(folder / "notes.md")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_note(folder / "missing.md")
    with pytest.raises(InvalidInputError, match="no figure of the notebooks"):
        gallery.sentence(folder / "notes.csv")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        gallery.sentence(folder / "02_roc.csv")
