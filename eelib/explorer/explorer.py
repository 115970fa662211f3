"""Exit explorer: runs token by token, and back to Python."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.calibration.thresholds import Calibration
from eelib.decoding.output import DecodingOutput
from eelib.decoding.policies import Confidence, Policy
from eelib.errors import InvalidInputError
from eelib.evaluation.latency import Timings
from eelib.explorer import page
from eelib.explorer.ladder import ThresholdLadder
from eelib.explorer.recording import Recording, selection_table
from eelib.explorer.running import Job, Runner
from eelib.explorer.svg import picture
from eelib.explorer.text_traces import TextTraces
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import COUNT, check_known
from eelib.workspace import atomic_write

OBSERVED = ("selection", "policy", "recording")
"""What `Explorer.observe` can watch."""


class Explorer:
    """View of a decoded text: tokens, heatmap, replay, what-if.

    Shown in JupyterLab it is live: what is clicked there is `selection` here, and what the sliders say is `policy`.
    `to_html` writes the same as a page without kernel or network.

    Args:
        output: of `generate`.
        traces: of the same text, from `trace_text`.
        policy: that made the output; None if unknown.
        ladder: thresholds for the slider of ε (`ThresholdLadder.of` calibration traces); None leaves it out.
        timings: seconds of the pieces on this machine (`eelib.evaluation.time_pieces`); None counts weights read.
        name: of the run.

    Attributes:
        recordings: the runs that are shown, one or two.

    Raises:
        InvalidInputError, HeadsError: output, traces, policy, ladder and timings do not belong together.

    Example:
        >>> policy = Confidence("max_prob", thresholds=(0.5, 0.4, None), max_draft=4)
        >>> output = generate(model, input_ids, policy=policy, heads=heads, max_new_tokens=8)
        >>> traces = eelib.explorer.trace_text(model, tokenizer, output, heads)
        >>> explorer = eelib.explorer.Explorer(output, traces, policy=policy)
        >>> explorer.select(2)
        >>> explorer.selection.depth.tolist()
        [1, 3, 5, 6]
    """

    def __init__(
        self,
        output: DecodingOutput,
        traces: TextTraces,
        *,
        policy: Policy | None = None,
        ladder: ThresholdLadder | None = None,
        timings: Timings | None = None,
        name: str = "",
    ):
        self._show(Recording(output, traces, policy, ladder, timings, name))

    @classmethod
    def compare(cls, first: "Explorer", second: "Explorer") -> "Explorer":
        """Two runs side by side, scrolling and hovering together.

        Two policies, two ε, plain decoding and DSSD, two kinds of heads. Give each a name.
        """
        made = cls.__new__(cls)
        made._show(first.recordings[0], second.recordings[0])
        return made

    @classmethod
    def run(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heads: ExitHeads | None,
        calibration: Calibration | Policy,
        prompt: str,
        *,
        ladder: ThresholdLadder | None = None,
        timings: Timings | None = None,
        max_new_tokens: int = 64,
        verify: bool = True,
        name: str = "",
    ) -> "Explorer":
        """Decode a prompt and explore it.

        Where a kernel runs there is a box for other prompts.

        Args:
            calibration: whose thresholds decide, or a policy.
            prompt: a user's turn where the model has turns, else the beginning of a text.
            verify: False for early exit, where what a head says stands.
            name: of the run; the model's is its config's.

        Raises:
            InvalidInputError: an empty prompt, or what `generate` refuses.
        """
        policy = calibration if isinstance(calibration, Policy) else Confidence.from_calibration(calibration)
        limit = COUNT("max_new_tokens", max_new_tokens)
        runner = Runner(model, tokenizer, heads, ladder, timings, max_new_tokens=limit, verify=verify)
        recording = runner.record(prompt, policy)
        made = cls.__new__(cls)
        made._show(Recording(recording.output, recording.traces, policy, ladder, timings, name))
        made._runner, made._prompt = runner, prompt
        return made

    def _show(self, *recordings: Recording) -> None:
        self.recordings = list(recordings)
        self._settings = [recording.settings for recording in recordings]
        self._chosen: list[int] = []
        self._side = 0
        self._runner: Runner | None = None
        self._prompt = ""
        self._job: Job | None = None
        self._widget = None
        self._watchers: list[tuple[str, Callable]] = []

    @property
    def selection(self) -> pd.DataFrame:
        """Chosen tokens, one row per token and exit.

        Columns: token (number among the new ones), position, token_id, text; depth (of the exit), head_token,
        head_text, probability (of the token itself; NaN where it is among no exit's best), agrees, kl [nats], and
        one per metric.
        """
        return selection_table(self.recordings[self._side], self._chosen)

    @property
    def policy(self) -> Policy:
        """The policy that the sliders say, ready for `generate`."""
        return self.recordings[self._side].policy_of(self._settings[self._side])

    def select(self, *tokens: int) -> None:
        """Choose tokens by their number among the new ones, as clicking does."""
        n = self.recordings[self._side].output.stats.emitted
        outside = [token for token in tokens if not 0 <= token < n]
        if outside:
            raise InvalidInputError(f"Tokens {outside}: expected numbers from 0 to {n - 1}, of the new tokens.")
        self._take({"selected": [int(token) for token in tokens]})
        self._send("selected", self._chosen)

    def observe(self, handler: Callable[["Explorer"], None], name: str = "selection") -> None:
        """Call `handler(explorer)` when the selection, the policy or the recording changes.

        Args:
            name: "selection", "policy" or "recording".
        """
        self._watchers.append((check_known("what to observe", name, OBSERVED), handler))

    def unobserve(self, handler: Callable[["Explorer"], None]) -> None:
        """Stop calling a handler."""
        self._watchers = [(name, other) for name, other in self._watchers if other != handler]

    def stop(self) -> None:
        """Stop the run that the prompt box started."""
        if self._job is not None:
            self._job.stop()

    def to_html(self, path: str | Path, title: str = "Exit explorer") -> None:
        """Write one page that needs nothing else, no network either."""
        with atomic_write(path) as temporary:
            temporary.write_text(page.page(self._state(), title), encoding="utf-8")

    def to_svg(self, view: str, path: str | Path | None = None, *, metric: str | None = None) -> str:
        """A picture of the run as SVG, also written to `path`.

        The buttons of the live view save pictures as they are seen there, also as PNG.

        Args:
            view: "tokens", "heatmap" or "replay" (all rounds in a row).
            metric: of the heatmap, or "kl"; the policy's by default.

        Raises:
            InvalidInputError: an unknown view or metric.
        """
        drawn = picture(self.recordings[self._side], view, metric)
        if path is not None:
            with atomic_write(path) as temporary:
                temporary.write_text(drawn, encoding="utf-8")
        return drawn

    def frame(self, height: int = 860) -> str:
        """The page as HTML for a notebook's output, which needs no kernel."""
        return page.frame(page.page(self._state(), "Exit explorer"), height)

    @property
    def widget(self):
        """The live view, an anywidget.

        Raises:
            MissingExtraError: anywidget is not installed.
        """
        if self._widget is None:
            self._widget = widget_class()(**self._state(), live=self._runner is not None)
            heard = ["settings", "selected", "side", "request"]
            self._widget.observe(lambda change: self._take({change["name"]: change["new"]}), heard)
        return self._widget

    def __repr__(self) -> str:
        shown = " beside ".join(f"{len(r.traces.teacher)} tokens of {r.traces.model}" for r in self.recordings)
        return f"Explorer({shown})"

    def _ipython_display_(self) -> None:
        page.show_live(self._repr_mimebundle_(), self._told)

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        data, metadata = self.widget._repr_mimebundle_(**options)
        return data | {"text/plain": self._told}, metadata

    @property
    def _told(self) -> str:
        return f"{self!r}: run this cell again to explore it; Explorer.to_html writes a page that needs no kernel."

    def _state(self) -> dict:
        return {
            "data": {"runs": [recording.to_json() for recording in self.recordings]}, "settings": self._settings,
            "selected": self._chosen, "side": self._side, "prompt": self._prompt,
            "max_new_tokens": self._runner.max_new_tokens if self._runner else 64,
        }  # fmt: skip

    def _take(self, changes: Mapping) -> None:
        """Take over what the browser says, and tell who watches."""
        for name, value in changes.items():
            if name == "request":
                self._answer(value)
                continue
            setattr(self, {"settings": "_settings", "selected": "_chosen", "side": "_side"}[name], value)
            self._tell({"settings": "policy", "selected": "selection"}.get(name))

    def _tell(self, name: str | None) -> None:
        for watched, handler in [*self._watchers]:
            if watched == name:
                handler(self)

    def _send(self, name: str, value) -> None:
        if self._widget is not None:
            setattr(self._widget, name, value)

    def _answer(self, request: Mapping) -> None:
        """The Run and Stop buttons."""
        if request.get("do") == "stop":
            self.stop()
        if request.get("do") != "run" or self._runner is None or (self._job is not None and self._job.alive):
            return

        def work(streamer):
            limit = COUNT("max_new_tokens", request.get("max_new_tokens"))
            return self._runner.record(str(request.get("prompt", "")), self.policy, limit, streamer)

        self._job = Job(work, self._replace, lambda status: self._send("status", status))
        self._job.start()

    def _replace(self, recording: Recording) -> None:
        """Show the run that was asked for."""
        self.recordings, self._settings = [recording], [recording.settings]
        self._chosen, self._side = [], 0
        if self._widget is not None:
            with self._widget.hold_sync():
                self._widget.settings, self._widget.selected = self._settings, []
                self._widget.data = self._state()["data"]
        self._tell("recording")


@cache
def widget_class() -> type:
    """The widget, made when it is first needed."""
    return page.widget_class(
        "ExplorerWidget", page.module(), page.style(), data={}, settings=[], selected=[], side=0, prompt="",
        max_new_tokens=64, live=False, request={}, status={},
    )  # fmt: skip
