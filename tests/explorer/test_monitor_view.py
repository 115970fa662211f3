import asyncio
import itertools
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from tiny import PROJECT, drawn, prompts, tiny_model

import eelib
from eelib.decoding.monitor import ExitMonitor, compare_monitors
from eelib.errors import InvalidInputError
from eelib.explorer import MonitorView


@pytest.fixture(scope="module")
def calibration():
    found = eelib.calibrate(drawn(4), "margin", 0.7)
    return eelib.Calibration((2, 4), (0.05, 0.05), "margin", 0.7, found.target, "empirical", None, found.table)


@pytest.fixture(scope="module")
def outputs():
    model = tiny_model("llama")
    heads = eelib.ExitHeads.init(model, [2, 4], "none")
    policy = eelib.Confidence("margin", (0.05, 0.05), max_draft=4, back_off=False)
    kwargs = {"heads": heads, "max_new_tokens": 30, "eos_token_id": None}
    plain = [eelib.generate(model, p, policy=eelib.Never(), **kwargs) for p in prompts(3)]
    return [eelib.generate(model, p, policy=policy, **kwargs) for p in prompts(4)], plain


def monitor_of(calibration, outputs):
    monitor = ExitMonitor(calibration)
    for output in outputs:
        monitor.observe(output)
    return monitor


def part(view, population="verified", run=0):
    return view.data["runs"][run]["populations"][population]


def test_a_view_shows_what_the_monitor_counted(calibration, outputs):
    monitor = monitor_of(calibration, outputs[0])
    found, stats = part(MonitorView(monitor)), [output.stats for output in outputs[0]]
    assert found["tokens"] == sum(s.emitted for s in stats) and found["sequences"] == 4
    assert found["acceptance"] == pytest.approx(sum(s.accepted for s in stats) / sum(s.drafted for s in stats), 1e-5)
    assert found["speed"] == pytest.approx(found["tokens"] / sum(s.seconds for s in stats), 1e-5)
    assert sum(found["settled"].values()) == found["tokens"] and set(found["settled"]) == {"2", "4", "full"}
    assert found["series"]["sequence"] == [1, 2, 3, 4] and found["series"]["agreement"][-1] == found["agreement"]
    assert found["saved"] is None and found["alarm_at"] is None


def test_a_finished_export_shows_the_same_as_the_monitor(calibration, outputs, tmp_path):
    monitor = monitor_of(calibration, outputs[0])
    monitor.to_frame().to_csv(tmp_path / "export.csv", index=False)
    monitor.to_frame().to_parquet(tmp_path / "export.parquet")
    sources = monitor.to_frame(), tmp_path / "export.csv", str(tmp_path / "export.parquet")
    for source in sources:
        assert MonitorView(source, plain=0.1).data == MonitorView(monitor, plain=0.1).data


def test_what_is_saved_beside_plain_decoding(calibration, outputs):
    """By hand: 0.1 s a token plain, 0.08 s with drafts; 100 tokens; 36 an hour are 1 cent a second."""
    table = monitor_of(calibration, outputs[0][:2]).to_frame().assign(tokens=50, seconds=[3.0, 5.0])
    saved = part(MonitorView(table, plain=0.1, price_per_hour=36))["saved"]
    assert saved["share"] == pytest.approx(0.2) and saved["seconds"][0] == pytest.approx(2.0)
    assert saved["cost"][0] == pytest.approx(0.02)
    assert saved["seconds"][1:] == pytest.approx([0.0, 4.0]), "both sequences as the slower, and as the quicker one"
    plain = table.assign(seconds=[5.0, 5.0])
    assert part(MonitorView(table, plain=plain))["saved"] == saved | {"cost": None}
    plain = monitor_of(calibration, outputs[1])
    found = part(MonitorView(table, plain=plain))["saved"]["seconds"][0]
    assert found == pytest.approx(100 * plain.table.seconds.sum() / plain.table.tokens.sum() - 8, 1e-4)


def test_two_exports_side_by_side(calibration, outputs):
    first, second = (monitor_of(calibration, outputs[0][:n]) for n in (3, 4))
    view = MonitorView(first, second.to_frame(), names=("before", "after"), price_per_hour=2)
    assert [run["name"] for run in view.data["runs"]] == ["before", "after"]
    rows = {row["measure"]: row for row in view.data["comparison"]["verified"]}
    for row in compare_monitors(first, second).itertuples():
        shown = rows[row.measure.replace("_", " ")]
        assert shown["difference"] == pytest.approx(row.difference, 1e-4)
        assert (shown["low"], shown["high"]) == pytest.approx((row.difference_low, row.difference_high), 1e-4)
    assert rows["$ a million tokens"]["first"] == pytest.approx(rows["seconds per token"]["first"] / 3600 * 2e6, 1e-4)
    assert MonitorView(first, monitor_of(calibration, outputs[0][:1])).data["comparison"] == {}


def test_it_follows_its_monitor_until_it_is_closed(calibration, outputs):
    monitor = ExitMonitor(calibration)
    view = MonitorView(monitor)
    widget = view.widget
    assert widget.data["runs"] == []
    monitor.observe(outputs[0][0])
    assert part(widget)["sequences"] == 1

    async def cell():
        for output in outputs[0][1:]:
            monitor.observe(output)
        seen = part(widget)["sequences"]
        while part(widget)["sequences"] < 4:
            await asyncio.sleep(0.01)
        return seen

    assert asyncio.run(cell()) < 4, "not every record is drawn, but the last one is"
    view.close()
    monitor.observe(outputs[0][0])
    assert part(widget)["sequences"] == 4 and part(view)["sequences"] == 5


def test_as_a_streamer_it_counts_the_tokens_of_a_call(calibration, monkeypatch):
    view, told = MonitorView(ExitMonitor(calibration)), []
    view.widget.observe(lambda change: told.append(change.new), "live")
    seconds = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    eelib.generate(tiny_model("llama"), prompts(1)[0], policy=eelib.Never(), max_new_tokens=5, streamer=view)
    assert [one.get("tokens") for one in told] == [1, 2, 3, 4, 5, None]


def test_a_page_holds_everything_and_escapes_what_it_shows(calibration, outputs, tmp_path):
    monitor = ExitMonitor(calibration)
    view = MonitorView(monitor, names=("</script><b>", "B"))
    monitor.observe(outputs[0][0])
    view.to_html(tmp_path / "page.html", title="a < b & c")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "<title>a &lt; b &amp; c</title>" in page
    assert not re.findall(r"(?:src|href)=|@import|url\(", page)
    held = json.loads(re.search(r'application/json"[^>]*>(.*)</script>', page)[1])
    assert held["runs"][0]["name"] == "</script><b>" and part(view)["sequences"] == 1


def test_long_runs_are_thinned_and_their_alarm_kept(calibration):
    monitor = ExitMonitor(calibration)
    monitor.audit(drawn(700, seed=6, skill=0.0, tokens=5))
    found = part(MonitorView(monitor), "audited")
    assert found["alarm_at"] in found["series"]["sequence"] and found["series"]["sequence"][-1] == 700
    assert len(found["series"]["sequence"]) <= 301 and found["speed"] is None and found["acceptance"] is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"monitor": 3}, "ExitMonitor"), ({"monitor": pd.DataFrame()}, "missing"), ({"other": "b.json"}, "csv"),
        ({"plain": 0}, "plain"), ({"plain": float("nan")}, "plain"), ({"price_per_hour": -1}, "price_per_hour"),
        ({"names": ("a", "a")}, "names"), ({"names": ("a",)}, "names"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_drawn(calibration, changed, words):
    with pytest.raises(InvalidInputError, match=words):
        MonitorView(**{"monitor": ExitMonitor(calibration)} | changed)


def test_plain_decoding_that_was_never_timed_is_refused(calibration):
    monitor = ExitMonitor(calibration)
    monitor.audit(drawn(2))
    with pytest.raises(InvalidInputError, match="Never"):
        MonitorView(monitor, plain=monitor)


def test_without_anywidget_one_is_told_what_to_install():
    code = "import sys, eelib; sys.modules['anywidget'] = None; eelib.explorer.monitor_view._widget_class()"
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert "pip install 'eelib[explore]'" in run.stderr and "MissingExtraError" in run.stderr
