"""The explorer in Python: selection, policy, observers, runs from the prompt box, and pages."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from tiny import PROJECT, chatty

import eelib
from eelib.errors import InvalidInputError, MissingExtraError
from eelib.explorer import Explorer, Recording
from eelib.explorer.running import Job


@pytest.fixture
def explorer(recording):
    return Explorer(recording.output, recording.traces, policy=recording.policy)


def test_selection_and_observers(explorer):
    heard = []
    explorer.observe(lambda one: heard.append(one.selection.token.unique().tolist()))
    explorer.observe(lambda one: heard.append(one.policy), "policy")
    explorer.select(2, 5)
    explorer._take({"settings": [explorer._settings[0] | {"max_draft": 7}]})
    assert heard[0] == [2, 5] and heard[1].max_draft == 7
    with pytest.raises(InvalidInputError, match=r"Tokens \[99\]: expected numbers from 0 to 39"):
        explorer.select(99)
    with pytest.raises(InvalidInputError, match="Unknown what to observe 'colour'"):
        explorer.observe(print, "colour")


def test_the_policy_decodes(explorer, decoded):
    model, _, heads, _, output = decoded
    again = eelib.generate(model, output.sequences[:, :7], heads=heads, policy=explorer.policy, max_new_tokens=8)
    assert again.sequences.tolist() == output.sequences[:, :15].tolist() and again.stats.drafted


def test_two_runs_side_by_side(explorer, decoded):
    model, _, heads, *_ = decoded
    plain = Explorer.run(model, chatty(), heads, eelib.Never(), "abc", max_new_tokens=6, name="plain")
    both = Explorer.compare(explorer, plain)
    both._take({"side": 1})
    both.select(1)
    assert both.policy == eelib.Never() and both.selection.token.eq(1).all()
    assert [run["name"] for run in both._state()["data"]["runs"]] == ["", "plain"]


def test_a_page_needs_nothing_and_says_what_it_is_told(made_up, tmp_path):
    run = made_up(5)
    path = tmp_path / "page.html"
    Explorer(run.output, run.traces).to_html(path, title="<i>mine</i>")
    page = path.read_text(encoding="utf-8")
    held = re.search(r'<script type="application/json" id="held">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(held)["data"]["runs"][0]["pieces"] == list(run.traces.pieces)
    assert "</script>" in run.traces.pieces and page.count("</script>") == 2, "what tokens say ends no script"
    assert "&lt;i&gt;mine" in page and not re.search(r"""(src|href)=|url\(|@import|https?://(?!www\.w3)""", page)


def test_a_page_of_256_tokens_is_small(made_up, tmp_path):
    run = made_up(6, n=256)
    Explorer(run.output, run.traces).to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 500_000


def test_a_frame_holds_the_page(explorer):
    frame = explorer.frame()
    assert frame.startswith("<iframe") and frame.count("<") == 2 and "srcdoc=" in frame


@pytest.fixture
def running(decoded):
    model, _, heads, policy, _ = decoded
    return Explorer.run(model, chatty(), heads, policy, "What is 1+1?", max_new_tokens=12)


def test_the_prompt_box_decodes_with_what_the_sliders_say(running):
    said, statuses = [], []
    running.observe(lambda one: said.append(one.recordings[0]), "recording")
    running._send = lambda name, value: statuses.append(value)
    settings = running._settings[0] | {"kind": "fixed", "depth": 3, "draft_length": 2}
    running._take({"settings": [settings], "request": {"do": "run", "prompt": "And 2+2?", "max_new_tokens": 20}})
    running._job.wait(60)
    (recording,) = said
    assert recording.policy == eelib.FixedExit(3, 2) and recording.output.stats.drafted
    assert running.recordings == said and running.policy == eelib.FixedExit(3, 2)
    states = [status["state"] for status in statuses]
    assert states[0] == "running" and states[-1] == "done" and states.count("running") >= 2


def test_a_run_that_fails_says_why_and_keeps_what_was_there(running):
    before, statuses = running.recordings, []
    running._send = lambda name, value: statuses.append(value)
    running._take({"request": {"do": "run", "prompt": "  ", "max_new_tokens": 20}})
    running._job.wait(60)
    assert statuses[-1]["state"] == "failed" and "expected some text" in statuses[-1]["message"]
    assert running.recordings is before


def test_a_run_is_stopped_between_tokens(running):
    statuses = []

    def work(streamer):
        job.stop()
        return running._runner.record("Tell me more.", eelib.Never(), 40, streamer)

    job = Job(work, lambda recording: pytest.fail("it was stopped"), statuses.append)
    job.start()
    job.wait(60)
    assert statuses[-1] == {"state": "stopped", "message": "Stopped after 0 tokens."}


def test_it_is_a_widget_where_anywidget_is_installed(explorer):
    pytest.importorskip("anywidget")
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "run this cell again" in data["text/plain"]
    explorer.widget.selected = [3]
    assert explorer.selection.token.eq(3).all()
    explorer.select(4)
    assert explorer.widget.selected == [4]
    explorer.widget.settings = [explorer._settings[0] | {"kind": "never"}]
    assert explorer.policy == eelib.Never()
    other = Explorer.compare(explorer, explorer)
    assert other.widget is not explorer.widget and other.widget.selected == []


def test_without_anywidget_only_the_live_view_is_missing(explorer, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    from eelib.explorer.explorer import widget_class

    widget_class.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'eelib\[explore\]'"):
        explorer.widget  # noqa: B018
    explorer.to_html(tmp_path / "page.html")
    widget_class.cache_clear()


def test_importing_it_loads_no_widget():
    code = "import sys, eelib.explorer; from eelib.explorer import Explorer; sys.exit('anywidget' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_recordings_of_the_same_run_are_equal_in_json(recording):
    again = Recording(recording.output, recording.traces, recording.policy)
    assert again.to_json() == recording.to_json()


@pytest.mark.parametrize("view", ["tokens", "heatmap", "replay"])
def test_pictures_are_valid_and_show_the_text(explorer, made_up, view, tmp_path):
    made = made_up(5)
    for one in (explorer, Explorer(made.output, made.traces)):
        drawn = one.to_svg(view, tmp_path / "picture.svg")
        root = ElementTree.fromstring((tmp_path / "picture.svg").read_text(encoding="utf-8"))
        assert root.tag.endswith("svg") and drawn.startswith("<svg")
        if view == "tokens":
            struck = [t for t in root.iter() if t.get("text-decoration")]
            stats = one.recordings[0].output.stats
            assert len(struck) == stats.drafted - stats.accepted
    with pytest.raises(InvalidInputError, match="Unknown view 'map'"):
        explorer.to_svg("map")
    with pytest.raises(InvalidInputError, match="metric='heat'"):
        explorer.to_svg("heatmap", metric="heat")
