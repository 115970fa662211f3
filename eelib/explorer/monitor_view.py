"""Monitor view: exit monitors to watch, live or from their exports."""

import asyncio
import math
import time
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eelib.decoding.monitor import ExitMonitor, agreement_so_far, compare_monitors, read_export
from eelib.errors import InvalidInputError
from eelib.explorer.page import page_of, show_live, widget_class
from eelib.settings import POSITIVE, Number
from eelib.statistics import ratio_difference_interval, ratio_interval
from eelib.workspace import atomic_write

WINDOW = 20
"""Sequences in a moving window."""
_POINTS = 300  # of a line
_PAUSE = 0.2  # seconds between two updates, at least
Source = ExitMonitor | pd.DataFrame | str | Path


class MonitorView:
    """View of one exit monitor, or of two side by side.

    Shows where tokens were settled, their agreement with its confidence sequence and the line at which the alarm is
    raised, tokens per second, acceptance, and the time and money saved beside plain decoding. Two sources are compared
    measure by measure, the second less the first, with 95% intervals over sequences.

    Shown in JupyterLab it follows an `ExitMonitor` while that observes; passed to `generate` as `streamer`, it also
    counts the tokens of the call that is going on. `to_html` writes the same as a page without kernel or network.

    Args:
        monitor: an `ExitMonitor`, an export (`ExitMonitor.to_frame`), or the file of one (.csv, .parquet).
        other: a second one, for an A/B comparison.
        names: of the two.
        plain: seconds per token of plain decoding, or a monitor or export that observed it (`policy=Never()`), which
            adds its uncertainty; None: what is saved remains unknown.
        price_per_hour: of the machine; None: no cost.
        currency: in which that is.

    Raises:
        InvalidInputError: no export, or values out of range.

    Example:
        >>> monitor = ExitMonitor(calibrate(traces, "max_prob", epsilon=0.7))
        >>> view = eelib.explorer.MonitorView(monitor, plain=0.05, price_per_hour=1.2)
        >>> monitor.audit(traces)
        >>> view.data["runs"][0]["populations"]["audited"]["sequences"]
        8
    """

    def __init__(
        self,
        monitor: Source,
        other: Source | None = None,
        *,
        names: tuple[str, str] = ("A", "B"),
        plain: float | Source | None = None,
        price_per_hour: float | None = None,
        currency: str = "$",
    ):
        if len(names) != 2 or len({*map(str, names)}) != 2:
            raise InvalidInputError(f"names={names!r}: expected two that differ.")
        self._price = Number(least=0, optional=True)("price_per_hour", price_per_hour)
        self._sources = [monitor] if other is None else [monitor, other]
        self._names, self._currency, self._plain = [*map(str, names)], str(currency), plain
        self._widget, self._ends, self._tokens = None, [], -1
        self._drawn, self._wait, self._due = -math.inf, _PAUSE, False
        _ = self.data  # whatever is wrong with it is said here

    @property
    def data(self) -> dict:
        """What is drawn: the monitors as they are now, in numbers."""
        exports, pace = [*map(read_export, self._sources)], _pace(self._plain)
        runs = [
            {
                "name": name, "epsilon": table.epsilon.iloc[0], "target": table.target.iloc[0],
                "false_alarm": table.false_alarm.iloc[0],
                "populations": {key: _part(part, pace, self._price) for key, part in table.groupby("population")},
            }
            for name, table in zip(self._names, exports, strict=False)
            if len(table)
        ]  # fmt: skip
        enough = [{key for key, part in run["populations"].items() if part["sequences"] > 1} for run in runs]
        both = sorted(set.intersection(*enough)) if len(runs) == 2 else []
        return _plain_numbers({
            "runs": runs, "price_per_hour": self._price, "currency": self._currency,
            "plain_speed": None if pace is None else pace[0].sum() / pace[1].sum(),
            "comparison": {population: self._compared(exports, population) for population in both},
        })  # fmt: skip

    @property
    def widget(self):
        """The live view, an anywidget.

        Raises:
            MissingExtraError: anywidget is not installed.
        """
        if self._widget is None:
            self._widget = _widget_class()(data=self.data)
            self._ends = [one.follow(self._changed) for one in self._sources if isinstance(one, ExitMonitor)]
        return self._widget

    def to_html(self, path: str | Path, title: str = "Exit monitor") -> None:
        """Write one page that needs nothing else, no network either."""
        with atomic_write(path) as temporary:
            temporary.write_text(page_of(self.data, title, _file("css"), _file("js")), encoding="utf-8")

    def put(self, tokens: Any) -> None:
        """Count streamed tokens, behind the prompt that comes first."""
        self._tokens, now = self._tokens + 1, time.monotonic()
        if not self._tokens:
            self._started = self._told = now
        elif self._widget is not None and now - self._told >= _PAUSE:
            self._told = now
            self._widget.live = {"tokens": self._tokens, "seconds": now - self._started}
            if self._due and now - self._drawn >= self._wait:
                self._draw()

    def end(self) -> None:
        """End of the stream."""
        self._tokens = -1
        if self._widget is not None:
            self._widget.live = {}

    def close(self) -> None:
        """Stop following, and remove the view."""
        for end in self._ends:
            end()
        if self._widget is not None:
            self._widget.close()
        self._widget = None

    def _ipython_display_(self) -> None:
        data, metadata = self.widget._repr_mimebundle_()
        told = "MonitorView: run this cell again to see it; MonitorView.to_html writes a page that needs no kernel."
        show_live((data | {"text/plain": told}, metadata), told)

    def _changed(self) -> None:
        """Draw at once, or where that was just done, soon."""
        if time.monotonic() - self._drawn >= self._wait:
            self._draw()
        elif not self._due:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # no notebook, so nobody is watching
            self._due = True
            loop.call_later(self._wait, lambda: self._draw() if self._due else None)

    def _draw(self) -> None:
        started, self._due = time.monotonic(), False
        if self._widget is not None:
            self._widget.data = self.data
        self._drawn = time.monotonic()
        self._wait = max(_PAUSE, 10 * (self._drawn - started))  # so that watching costs little

    def _compared(self, exports: list[pd.DataFrame], population: str) -> list[dict]:
        table = compare_monitors(*exports, population).set_index("measure")
        if self._price is not None:
            table.loc[f"{self._currency} a million tokens"] = table.loc["seconds_per_token"] / 3600 * self._price * 1e6
        table.columns = ["first", "second", "difference", "low", "high"]
        shares = ("coverage", "agreement", "acceptance")
        return [
            {"measure": name.replace("_", " "), "share": name in shares, **row.to_dict()}
            for name, row in table.iterrows()
        ]


def _part(table: pd.DataFrame, pace: tuple[np.ndarray, np.ndarray] | None, price: float | None) -> dict:
    """What is drawn of one population."""
    last, agreement = table.iloc[-1], agreement_so_far(table)
    alarmed = np.flatnonzero(table.evidence >= 1 / last.false_alarm)
    moving = table[["tokens", "seconds", "accepted", "drafted"]].rolling(WINDOW, min_periods=1).sum()
    chosen = np.unique(np.r_[np.linspace(0, len(table) - 1, _POINTS).round(), alarmed[:1]]).astype(int)
    series = {
        "sequence": np.arange(1, len(table) + 1), "agreement": agreement, "low": table.agreement_low,
        "high": table.agreement_high, "speed": moving.tokens / moving.seconds,
        "acceptance": moving.accepted / moving.drafted,
    }  # fmt: skip
    settled = table.filter(like="settled_").rename(columns=lambda name: name.removeprefix("settled_"))
    n, seconds = table.tokens.sum(), table.seconds.sum(min_count=1)
    return {
        "sequences": len(table), "tokens": n, "agreement": agreement.iloc[-1], "low": last.agreement_low,
        "high": last.agreement_high, "coverage": table.exited.sum() / n, "speed": n / seconds,
        "acceptance": table.accepted.sum() / (table.drafted.sum() or math.nan), "window": WINDOW,
        "alarm_at": alarmed[0] + 1 if len(alarmed) else None, "saved": _saved(table, pace, price),
        "settled": settled.sum().to_dict(), "recent": settled.tail(WINDOW).sum().to_dict(),
        "series": {name: np.asarray(values)[chosen].tolist() for name, values in series.items()},
    }  # fmt: skip


def _saved(table: pd.DataFrame, pace: tuple[np.ndarray, np.ndarray] | None, price: float | None) -> dict | None:
    """Time and cost saved so far, with 95% intervals.

    Beside plain decoding; None where that is unknown.
    """
    if pace is None or table.seconds.isna().any():
        return None
    own, n = (table.seconds.to_numpy(float), table.tokens.to_numpy(float)), table.tokens.sum()
    plain = pace[1].sum() / pace[0].sum()
    if len(pace[0]) > 1:
        per_token = ratio_difference_interval(own, (pace[1], pace[0]))
    else:  # a number, taken as exact
        value, low, high = ratio_interval(*own)
        per_token = plain - value, plain - high, plain - low
    seconds = [n * value for value in per_token]
    cost = None if price is None else [value / 3600 * price for value in seconds]
    return {"share": per_token[0] / plain, "seconds": seconds, "cost": cost}


def _pace(plain: float | Source | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens and seconds of plain decoding; one pair for a number."""
    if plain is None:
        return None
    if not isinstance(plain, ExitMonitor | pd.DataFrame | str | Path):
        return np.ones(1), np.array([POSITIVE("plain", plain)])
    table = read_export(plain).dropna(subset="seconds")
    if not table.tokens.sum():
        raise InvalidInputError("plain: no sequence was timed. Observe some, decoded with policy=Never(), first.")
    return table.tokens.to_numpy(float), table.seconds.to_numpy(float)


def _plain_numbers(value: Any) -> Any:
    """Numbers, lists and dicts as JSON has them.

    With six digits, and None for what is no number.
    """
    if isinstance(value, dict):
        return {str(key): _plain_numbers(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(one) for one in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _file(suffix: str) -> str:
    return files("eelib.explorer").joinpath(f"monitor.{suffix}").read_text(encoding="utf-8")


@cache
def _widget_class() -> type:
    return widget_class("MonitorWidget", _file("js"), _file("css"), data={}, live={})
