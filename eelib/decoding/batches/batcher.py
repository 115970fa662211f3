"""Continuous batches: prompts come at any time, texts leave as they end."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from eelib.backbone.packing import packed
from eelib.backbone.probing import unwrapped
from eelib.backbone.segments import Backbone
from eelib.decoding.batches.gathering import Gathering, gathering_of
from eelib.decoding.batches.prompts import generators_of
from eelib.decoding.batches.scheduler import Batch
from eelib.decoding.engine import row_call
from eelib.decoding.output import DecodingOutput
from eelib.decoding.policies import Policy
from eelib.decoding.session import DecodingCall, Session
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import COUNT


@dataclass(frozen=True)
class Finished:
    """A text that has ended, or could not be decoded.

    Attributes:
        number: of its prompt, as `Batcher.add` returned it.
        output: as from `generate`; None if it failed.
        error: why it failed; None if it did not.
    """

    number: int
    output: DecodingOutput | None
    error: Exception | None = None

    def result(self) -> DecodingOutput:
        """The output; raises the error if there is none."""
        if self.error is not None:
            raise self.error
        return self.output


@dataclass(frozen=True)
class _Asked:
    """A prompt in the queue.

    Attributes:
        number: of the prompt.
        prompt: its tokens.
        seed: of its sampling.
        streamer: of its tokens.
        options: of its own.
    """

    number: int
    prompt: Any
    seed: int | None = None
    streamer: Any = None
    options: dict[str, Any] | None = None


class Batcher:
    """Decoding of a stream of prompts, up to so many at once.

    Each text is what it would be alone. A place that falls free is taken by the next prompt at once. A prompt that
    cannot be decoded, or a rule of one row that fails, ends that row alone, with its error. Memory: keys and values of
    `rows` texts, each with room for its prompt and 1,024 new tokens at first (or its `max_length`, if that is less).

    Args:
        model, policy, heads, verify, exact, session, gather, generate_kwargs: as for `eelib.generate`.
        rows: maximum number of texts in flight.

    Example:
        >>> batcher = Batcher(model, policy=FixedExit(3, 2), heads=heads, rows=2, max_new_tokens=4)
        >>> found = {done.number: done.output for done in batcher.run([[5, 6, 7], [8, 9], [10]])}
        >>> sorted(found), found[2].stats.emitted
        ([0, 1, 2], 4)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        policy: Policy,
        heads: ExitHeads | None = None,
        verify: bool = True,
        exact: bool | None = None,
        rows: int = 8,
        gather: str | Gathering = "wait",
        session: Callable[[DecodingCall], Session] = Session,
        **generate_kwargs: Any,
    ):
        self.model, self.rows, self.session = unwrapped(model), COUNT("rows", rows), session
        self.options = {"policy": policy, **generate_kwargs}
        self._settings = {"heads": heads, "verify": verify, "exact": bool(exact)}
        self._batch = Batch(Backbone.of(self.model), gathering_of(gather))
        self._queue: deque[_Asked] = deque()
        self._finished: deque[Finished] = deque()
        self._streamers: dict[int, Any] = {}
        self._number = 0

    @property
    def waiting(self) -> int:
        """Number of prompts in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Number of texts that have begun and not ended."""
        return len(self._batch.rows)

    def add(self, prompt: Any, *, seed: int | None = None, streamer: Any = None, **options: Any) -> int:
        """Queue a prompt; return its number.

        Args:
            prompt: as for `eelib.generate`.
            seed: of its sampling; None to draw one from torch's own generator when it begins.
            streamer: of its tokens.
            options: generation options in place of the batcher's; `policy` may be among them.
        """
        self._queue.append(_Asked(self._number, prompt, seed, streamer, options))
        self._number += 1
        return self._number - 1

    def __iter__(self) -> Iterator[Finished]:
        """Decode what is queued, meanwhile too; yield texts as they end."""
        return self.run(())

    def run(self, prompts: Iterable[Any]) -> Iterator[Finished]:
        """Decode what is queued, and these; yield texts as they end.

        Args:
            prompts: taken one by one, each when a row falls free; numbered in their order.
        """
        source = iter(prompts)
        while True:
            try:
                self._fill(source)
                if not self._finished:
                    self._decode()
            except BaseException:  # an interrupt, or prompts that fail
                self.clear()
                raise
            if not self._finished:
                return
            while self._finished:  # kept, so that none is lost where a reader leaves, and comes again
                yield self._finished.popleft()

    def clear(self) -> None:
        """Give up all texts in flight; those in the queue stay."""
        self._batch.rows.clear()
        for number in list(self._streamers):
            self._end(number)

    def _fill(self, source: Iterator[Any]) -> None:
        """Begin texts while there is room."""
        while len(self._batch.rows) < self.rows:
            if not self._queue:
                try:
                    self.add(next(source))
                except StopIteration:
                    break
            asked = self._queue.popleft()
            try:
                self._begin(asked)
            except Exception as error:
                self._finish(Finished(asked.number, None, error))

    @torch.no_grad()
    def _begin(self, asked: _Asked) -> None:
        if asked.streamer is not None:
            self._streamers[asked.number] = asked.streamer
        options = {**self.options, **(asked.options or {})}
        call = row_call(self.model, asked.prompt, options, streamer=asked.streamer, **self._settings)
        seed = asked.seed
        if seed is None and call.generation_config.do_sample:  # texts in flight take turns, so each draws by itself
            seed = int(torch.randint(2**63 - 1, ()))
        generators = generators_of(seed, 1, self.model.device, sample=True)
        self._batch.add(asked.number, self.session(replace(call, generator=generators[0])))

    @torch.no_grad()
    def _decode(self) -> None:
        """Serve requests until a text has ended."""
        with packed(self.model, self._settings["heads"], exact=self._settings["exact"]):
            while self._batch.rows and not self._finished:
                for row in self._batch.step():
                    self._finish(Finished(row.number, row.output, row.error))

    def _finish(self, done: Finished) -> None:
        self._end(done.number)
        self._finished.append(done)

    def _end(self, number: int) -> None:
        streamer = self._streamers.pop(number, None)
        if streamer is not None:
            streamer.end()
