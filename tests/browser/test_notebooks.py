"""The notebooks that people open first, as they are delivered, in JupyterLab from top to bottom."""

import shutil

import pytest
from tiny import PROJECT

pytestmark = pytest.mark.browser
KIND = "eelib-explorer"
SLUG = "smollm2-135m"


@pytest.fixture
def delivered(lab, open_notebook):
    """Opens a notebook of the project in a folder of its own, beside the model and these artefacts of `make paper`."""
    data = lab.notebooks.parent / "data"

    def make(name: str, *artefacts: str):
        shutil.copy(PROJECT / "notebooks" / name, lab.notebooks)
        shutil.rmtree(data, ignore_errors=True)
        for artefact in ("models", *artefacts):
            if not (PROJECT / "data" / artefact / SLUG).is_dir():
                pytest.skip(f"no data/{artefact}/{SLUG}: make paper")
            (data / artefact).mkdir(parents=True)
            (data / artefact / SLUG).symlink_to(PROJECT / "data" / artefact / SLUG)
        return open_notebook(name).run_all()

    return make


@pytest.mark.timeout(900)
def test_the_quickstart_without_heads(delivered, shot):
    """A newcomer's: it trains a small head, and its last sentence says what was gained."""
    notebook = delivered("00_quickstart.ipynb")
    cells = notebook.page.locator(".jp-CodeCell")
    assert cells.filter(has_text="A small head was trained here").count() == 1
    notebook.view(KIND)
    shot(notebook.page, "quickstart")
    said = cells.last.locator(".jp-RenderedMarkdown").inner_text()
    assert "DSSD" in said and "times" in said, said
    assert notebook.page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0, "pink boxes"
    cells.last.scroll_into_view_if_needed()
    shot(notebook.page, "quickstart_end")


@pytest.mark.timeout(900)
def test_the_tour_of_the_explorer(delivered, shot):
    notebook = delivered("12_explorer.ipynb", "heads", "traces")
    assert notebook.page.locator(f".{KIND}[data-ready=true]").count() >= 2
    assert notebook.run("print(explorer.recordings[0].output.stats.emitted > 0, both.recordings[1].name)") == (
        "True fixed exit\n"
    )
    notebook.view(KIND, 1)
    shot(notebook.page, "tour")
