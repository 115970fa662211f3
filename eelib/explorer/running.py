"""Runs from the explorer's prompt box, with progress and Stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.corpus.chat import as_prompt
from eelib.decoding.engine import generate
from eelib.decoding.policies import Policy
from eelib.errors import EelibError, InvalidInputError
from eelib.evaluation.latency import Timings
from eelib.explorer.ladder import ThresholdLadder
from eelib.explorer.recording import Recording
from eelib.explorer.text_traces import trace_text
from eelib.heads.exit_heads import ExitHeads

_EVERY = 4  # tokens between two reports


class _StoppedError(Exception):
    """Raised inside `generate` to leave it."""


@dataclass
class Runner:
    """Decodes prompts and traces what came out.

    Attributes:
        model, tokenizer, heads: that decode.
        ladder, timings: of the recordings.
        max_new_tokens: unless a run says otherwise.
        verify: whether drafts are verified.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    heads: ExitHeads | None
    ladder: ThresholdLadder | None = None
    timings: Timings | None = None
    max_new_tokens: int = 64
    verify: bool = True

    def record(self, prompt: str, policy: Policy, max_new_tokens: int | None = None, streamer: Any = None) -> Recording:
        """Decode a prompt greedily, and trace the text.

        It is a user's turn where the model has turns.

        Raises:
            InvalidInputError: an empty prompt.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidInputError(f"prompt={prompt!r}: expected some text.")
        output = generate(
            self.model, as_prompt(prompt, self.tokenizer).to(self.model.device), heads=self.heads, policy=policy,
            verify=self.verify, do_sample=False, max_new_tokens=max_new_tokens or self.max_new_tokens,
            streamer=streamer,
        )  # fmt: skip
        traces = trace_text(self.model, self.tokenizer, output, self.heads)
        return Recording(output, traces, policy, self.ladder, self.timings)


class Job:
    """One run in a thread of its own.

    So that the kernel hears the Stop button.

    Args:
        work: gets a streamer, and returns what `done` gets.
        tell: gets the state of the run, for the browser: state, and tokens or a message.
    """

    def __init__(
        self, work: Callable[[Any], Recording], done: Callable[[Recording], None], tell: Callable[[dict], None]
    ):
        self._work, self._done, self._tell = work, done, tell
        self._stop = threading.Event()
        self._tokens = -1  # the first call of `put` has the prompt
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._tell({"state": "running", "tokens": 0})
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, tokens: Any) -> None:
        """As transformers' streamers."""
        if self._stop.is_set():
            raise _StoppedError
        self._tokens += 1
        if self._tokens and self._tokens % _EVERY == 0:
            self._tell({"state": "running", "tokens": self._tokens})

    def end(self) -> None:
        """As transformers' streamers."""

    def _run(self) -> None:
        try:
            recording = self._work(self)
            if self._stop.is_set():
                raise _StoppedError
            self._done(recording)
            self._tell({"state": "done", "tokens": recording.output.stats.emitted})
        except _StoppedError:
            self._tell({"state": "stopped", "message": f"Stopped after {max(0, self._tokens)} tokens."})
        except EelibError as error:
            self._tell({"state": "failed", "message": str(error)})
        except Exception as error:
            self._tell({"state": "failed", "message": f"{type(error).__name__}: {error}"})
            raise
