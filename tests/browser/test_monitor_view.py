"""The monitor view, in JupyterLab and as a page."""

import pandas as pd
import pytest
from tiny import drawn

import eelib
from eelib.decoding.monitor import ExitMonitor
from eelib.explorer import MonitorView

pytestmark = pytest.mark.browser

MODEL = """
import time
from pathlib import Path
import eelib
from eelib.decoding.monitor import ExitMonitor
from eelib.explorer import MonitorView
from tiny import drawn, prompts, tiny_model
from transformers import StoppingCriteria

model = tiny_model("llama")
heads = eelib.ExitHeads.init(model, [2, 4], "none")
policy = eelib.Confidence("margin", (0.05, 0.05), max_draft=4, back_off=False)
found = eelib.calibrate(drawn(4), "margin", 0.7)
calibration = eelib.Calibration((2, 4), (0.05, 0.05), "margin", 0.7, found.target, "empirical", None, found.table)
texts = prompts(8)

def decode(i, **options):
    return eelib.generate(model, texts[i], policy=policy, heads=heads, max_new_tokens=30, eos_token_id=None, **options)
"""
SHOWN = """
monitor = ExitMonitor(calibration)
view = MonitorView(monitor, plain=0.05, price_per_hour=1.5)
view
"""
OBSERVING = "for i in range({}):\n    monitor.observe(decode(i))"


def monitor_of(sequences: int, seed: int, skill: float = 2.0) -> ExitMonitor:
    found = eelib.calibrate(drawn(30), "margin", 0.8)
    monitor = ExitMonitor(found)
    monitor.audit(drawn(sequences, seed=seed, skill=skill))
    return monitor


def timed(export, seconds: float):
    """An audit as if it had been decoding, so that the page has all that it can show, and no second is measured."""
    wave = seconds * (1 + 0.2 * ((export.index * 7) % 5 - 2) / 2)
    return export.assign(
        population="verified", seconds=wave * export.tokens, drafted=export.exited + 2, accepted=export.agreed
    )


@pytest.fixture
def page_of(new_page, tmp_path):
    """Opens a view's page from its file, and tells what was requested."""

    def open_page(view, **options):
        view.to_html(tmp_path / "monitor.html")
        page, requests = new_page(offline=True, **options), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "monitor.html").as_uri())
        page.wait_for_selector(".eelib-monitor[data-ready=true]")
        return page, requests

    return open_page


def test_it_is_live_while_the_kernel_decodes(open_notebook):
    """What is drawn changes before the cell ends: a cell waits for the test in the middle of its work."""
    notebook = open_notebook("live.ipynb", MODEL, SHOWN)
    view = notebook.view("eelib-monitor")
    assert "Nothing observed yet" in view.inner_text()
    notebook.start(
        OBSERVING.format(2)
        + """
class Slowly(StoppingCriteria):
    def __call__(self, ids, scores, **options):
        if not Path("go").exists():
            time.sleep(0.25)
        while ids.shape[1] > 12 and not Path("go").exists():
            time.sleep(0.01)
        return False

monitor.observe(decode(2, streamer=view, stopping_criteria=[Slowly()]))
for i in range(3, 8):
    monitor.observe(decode(i))
"""
    )
    notebook.page.wait_for_selector(".eelib-monitor[data-sequences='2']")
    notebook.page.wait_for_function("/decoding: \\d+ tokens/.test(document.querySelector('.eelib-monitor').innerText)")
    (notebook.lab.notebooks / "go").touch()
    notebook.finish()
    notebook.page.wait_for_selector(".eelib-monitor[data-sequences='8']")
    assert "decoding:" not in view.inner_text()


def test_what_is_seen_is_what_python_says(open_notebook):
    notebook = open_notebook("numbers.ipynb", MODEL, SHOWN, OBSERVING.format(6))
    notebook.page.wait_for_selector(".eelib-monitor[data-sequences='6']")
    tiles = notebook.view("eelib-monitor").locator(".tiles dd")
    said = notebook.run(
        "part = view.data['runs'][0]['populations']['verified']\n"
        "print(part['sequences'], *(f'{100 * part[name]:.1f}%' for name in ('agreement', 'coverage', 'acceptance')))"
    ).split()
    assert [text.splitlines()[0] for text in tiles.all_inner_texts()[:4]] == said


def test_two_views_a_rerun_and_the_dark_theme(open_notebook, shot, accessible):
    again = "MonitorView(monitor, monitor.to_frame().head(4), names=('all', 'the first'))"
    notebook = open_notebook("two.ipynb", MODEL, SHOWN, OBSERVING.format(6), again)
    views = notebook.page.locator(".eelib-monitor")
    notebook.page.wait_for_selector(".eelib-monitor[data-sequences='6 4']")
    notebook.rerun(1)
    notebook.page.wait_for_selector(".eelib-monitor:not([data-sequences])[data-ready=true]")
    assert views.count() == 2
    notebook.run("monitor.observe(decode(7))")
    notebook.page.wait_for_selector(".eelib-monitor[data-sequences='1']")
    assert notebook.page.locator(".eelib-monitor[data-sequences='6 4']").count() == 1, "of the monitor before"
    notebook.theme("Dark")
    notebook.page.wait_for_function(
        "[...document.querySelectorAll('.eelib-monitor')].every((view) => view.dataset.theme === 'dark')"
    )
    shot(notebook.view("eelib-monitor", 1), "monitor_two_dark")
    accessible(notebook.page, ".eelib-monitor")


def test_a_saved_notebook_says_what_to_do(open_notebook):
    """Without a kernel that holds it, the view is gone; what stands there tells how to get it back."""
    notebook = open_notebook("saved.ipynb", MODEL, SHOWN)
    notebook.view("eelib-monitor")
    assert not notebook.page.locator(".eelib-note").is_visible()
    notebook.save()
    notebook.command("kernelmenu:shutdown")
    again = open_notebook("saved.ipynb")
    assert "run this cell again" in again.page.locator(".jp-OutputArea .eelib-note").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_without_a_network(page_of, scheme, shot, accessible):
    export = timed(monitor_of(90, seed=6, skill=0.5).to_frame(), 0.04)
    page, requests = page_of(MonitorView(export, plain=0.055, price_per_hour=2.4), color_scheme=scheme)
    assert requests == [page.url]
    assert page.locator(".eelib-monitor").get_attribute("data-theme") == scheme
    assert page.locator(".status").inner_text().startswith("alarm at sequence")
    accessible(page, "body")
    shot(page.locator(".eelib-monitor"), f"monitor_{scheme}")
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"
    shot(page.locator(".eelib-monitor"), f"monitor_narrow_{scheme}")


def test_charts_are_read_with_pointer_and_keys(page_of):
    export = timed(monitor_of(40, seed=2).to_frame(), 0.04)
    view = MonitorView(export)
    page, _ = page_of(view)
    series = view.data["runs"][0]["populations"]["verified"]["series"]
    figure = page.locator("figure").first
    figure.locator("svg").focus()
    page.keyboard.press("Home")
    assert figure.locator("figcaption").inner_text().startswith(f"sequence 1: {100 * series['agreement'][0]:.1f}%")
    page.keyboard.press("ArrowRight")
    low, high = (f"{100 * series[name][1]:.1f}%" for name in ("low", "high"))
    assert figure.locator("figcaption").inner_text().endswith(f"(limits {low} to {high})")
    box = figure.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2)
    assert figure.locator("figcaption").inner_text().startswith("sequence 40")
    page.mouse.move(0, 0)
    assert "ever wrong" in figure.locator("figcaption").inner_text()


def test_two_exports_side_by_side(page_of, shot, accessible):
    first, second = timed(monitor_of(60, 2).to_frame(), 0.05), timed(monitor_of(60, 3, 1.0).to_frame(), 0.042)
    view = MonitorView(first, second, names=("ε = 0.8", "new heads"), plain=0.055, price_per_hour=2.4)
    page, _ = page_of(view)
    rows = page.get_by_role("region", name="Comparison").locator("tbody tr")
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == [
        "coverage", "agreement", "acceptance", "seconds per token", "$ a million tokens",
    ]  # fmt: skip
    assert "−" in rows.nth(3).inner_text() and rows.nth(3).inner_text().endswith("yes")
    accessible(page, "body")
    shot(page.locator(".eelib-monitor"), "monitor_side_by_side")


def test_populations_are_chosen_by_key(page_of):
    audited = monitor_of(12, 2).to_frame()
    both = pd.concat([timed(audited, 0.05), audited.head(5)], ignore_index=True)
    page, _ = page_of(MonitorView(both))
    page.get_by_role("button", name="verified").focus()
    page.keyboard.press("Enter")
    assert page.locator(".eelib-monitor").get_attribute("data-sequences") == "12"
    assert page.evaluate("document.activeElement.textContent") == "verified"
    page.get_by_role("button", name="audited").click()
    assert page.locator(".eelib-monitor").get_attribute("data-sequences") == "5"
