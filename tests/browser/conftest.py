"""A real JupyterLab with real kernels, a real Chromium, and axe: for all tests of this folder.

Nothing is installed here. Where a part is missing, the run ends with one sentence that says what to install.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser.lab import Lab, Notebook

HERE = Path(__file__).parent
SHOTS = HERE / "shots"
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 30_000  # milliseconds until a step counts as lost; the machine may be busy


def missing() -> str | None:
    """What to install before anything here can run."""
    if find_spec("anywidget") is None:
        return "The views need anywidget: pip install 'eelib[explore]'"
    if find_spec("playwright") is None:
        return "The tests in a browser need playwright: pip install 'eelib[browser]'"
    if CHROMIUM is None:
        return "The tests in a browser need Chromium, and found none on the PATH: apt-get install chromium"
    return None


def pytest_sessionstart(session):
    """End at once, before there are workers, with a sentence in place of a failure a test."""
    if session.config.option.markexpr == "browser" and (lacking := missing()):
        pytest.exit(lacking, returncode=1)


@pytest.fixture(scope="session")
def chromium():
    """The browser."""
    assert not missing(), missing()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = os.geteuid() != 0  # root has none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    """A server, started once."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.wait()
        yield made
    finally:
        made.stop()


@pytest.fixture
def new_page(chromium):
    """Makes pages, each with a profile of its own; an error in one fails the test."""
    contexts, errors = [], []

    def make(**options):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 1300}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(SLOW)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors, errors


@pytest.fixture
def open_notebook(new_page, lab):
    """Opens a notebook of these cells, and runs it top to bottom."""

    def make(name: str, *cells: str, **options) -> Notebook:
        if cells:
            lab.write(name, *cells)
        notebook = Notebook(new_page(**options), lab, name).open()
        return notebook.run_all() if cells else notebook

    return make


@pytest.fixture
def accessible():
    """Asserts that axe finds nothing serious in a part of a page."""
    if not AXE.is_file():
        pytest.skip("axe-core is missing: npm ci --prefix tests/browser")

    def check(page, selector: str) -> None:
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("(selector) => axe.run(selector)", selector)["violations"]
        serious = [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, "\n".join(serious)

    return check


@pytest.fixture
def shot():
    """Keeps a picture of a page, or of a part of one, in shots/."""
    SHOTS.mkdir(exist_ok=True)

    def take(what, name: str) -> None:
        what.screenshot(path=SHOTS / f"{name}.png")

    return take


@pytest.fixture
def measured():
    """Keeps what was measured, beside the pictures."""
    SHOTS.mkdir(exist_ok=True)
    return (SHOTS / "measured.txt").write_text
