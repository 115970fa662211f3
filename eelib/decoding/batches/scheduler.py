"""Scheduler: the sessions of several texts, served by shared calls.

Each row is a session of its own, exactly as alone: its policy, its processors, its frontier. It runs until it needs the
model, and says so by a request (`steps`). Rows that wait at the same block are served in one ragged call, by the
gathering rule's choice; those that ask the same head, or unembed, at once. A row that ends leaves, and nothing is
computed for it any more.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eelib.backbone.packing import packed
from eelib.backbone.products import MAX_ROWS
from eelib.backbone.segments import Backbone, Span
from eelib.decoding.batches.gathering import Gathering
from eelib.decoding.batches.output import BatchOutput, BatchStats
from eelib.decoding.batches.prompts import numbered
from eelib.decoding.batches.ragged import Part, Ragged
from eelib.decoding.batches.steps import Advance, Ask, Request, Unembed, steps
from eelib.decoding.frontier import Frontier
from eelib.decoding.output import DecodingOutput
from eelib.decoding.session import DecodingCall, Session
from eelib.errors import InvalidInputError


class Row:
    """One text in a batch.

    Attributes:
        number: by which the caller knows it.
        session: its session.
        request: what it waits for; None once it has ended.
        place: block before which it waits, if it waits for blocks; else None.
        since: number of calls before it began to wait there.
        output: its result, once it has ended.
        error: why it has none.
    """

    def __init__(self, number: int, session: Session):
        self.number, self.session = number, session
        self.request: Request | None = None
        self.place: int | None = None
        self.hidden: Tensor | None = None  # its states at that block, if it is inside a segment
        self.since = self.carried = 0
        self.output: DecodingOutput | None = None
        self.error: Exception | None = None
        self._steps = steps(session, "decode")

    def resume(self, result: Any, calls: int) -> None:
        """Go on with the last request's result, up to the next."""
        self.request = self.place = self.hidden = None
        try:
            self.request = self._steps.send(result)
        except StopIteration as end:
            self.output = end.value
        except Exception as error:  # of a policy, processor or criterion: this row's own
            self.error = error
        if isinstance(self.request, Advance):
            self.place, self.since = self.request.frontier.bounds[self.request.segment], calls

    def serve_alone(self, calls: int) -> None:
        """Let the request serve itself."""
        try:
            result = self.request()
        except Exception as error:
            self.error, self.request, self.place, self.hidden = error, None, None, None
        else:
            self.resume(result, calls)

    @property
    def part(self) -> Part:
        """Its positions that wait for blocks."""
        frontier, segment = self.request.frontier, self.request.segment
        return Part(frontier, frontier.passed[segment], frontier.waits(segment))

    @property
    def states(self) -> Tensor:
        """States of these positions before the block."""
        return self.request.frontier.waiting(self.request.segment) if self.hidden is None else self.hidden

    @property
    def end(self) -> int:
        """Block at which the segment ends that it waits for."""
        return self.request.frontier.bounds[self.request.segment + 1]


class Batch:
    """Rows in flight, on one model.

    Attributes:
        rows: those that have not ended.
        calls: calls of blocks so far.
        block_calls: calls of each block.
        head_calls: calls of all heads.
        exits_lost: tokens that had exited, and passed blocks above their exit with rows that had not.
        refusal: why rows run one by one on this model; None if they share calls.
    """

    def __init__(self, backbone: Backbone, rule: Gathering):
        self.backbone, self.rule = backbone, rule
        self.rows: list[Row] = []
        self.calls = self.head_calls = self.exits_lost = 0
        self.block_calls = [0] * backbone.n_blocks
        self._ragged = Ragged.of(backbone)
        self.refusal = self._ragged.refusal
        self._last: tuple[list[tuple[Tensor, int, int]], Span | None] = [], None

    def add(self, number: int, session: Session) -> Row:
        """Let a text begin."""
        row = Row(number, session)
        self.rows.append(row)
        row.resume(None, self.calls)
        return row

    def step(self) -> list[Row]:
        """Serve one call's worth of requests; return the rows that have ended."""
        asking = [row for row in self.rows if row.request is not None and row.place is None]
        if asking:
            self._answer(asking)
        elif any(row.request is not None for row in self.rows):
            self._advance()
        ended = [row for row in self.rows if row.request is None]
        self.rows = [row for row in self.rows if row.request is not None]
        return ended

    def _answer(self, asking: Sequence[Row]) -> None:
        """Ask heads, and unembed: equal requests at once."""
        groups: dict[tuple, list[Row]] = {}
        for row in asking:
            groups.setdefault(_kind(row), []).append(row)
        for group in groups.values():
            for some in _chunks(group, _width):
                self.head_calls += isinstance(some[0].request, Ask)
                if len(some) == 1:
                    some[0].serve_alone(self.calls)
                    continue
                try:
                    results = _ask(some) if isinstance(some[0].request, Ask) else _unembed(some)
                except Exception:  # let each fail, or succeed, by itself
                    for row in some:
                        row.serve_alone(self.calls)
                else:
                    for row, result in zip(some, results, strict=True):
                        row.resume(result, self.calls)

    def _advance(self) -> None:
        """Run blocks for the rows at the place that the rule chooses."""
        waits: dict[int, list[int]] = {}
        for row in self.rows:
            waits.setdefault(row.place, []).append(self.calls - row.since)
        place = self.rule.choose(waits, len(self.rows))
        if place not in waits:
            raise InvalidInputError(f"{self.rule!r} chose place {place!r}: expected one of {sorted(waits)}.")
        self.calls += 1
        there = [row for row in self.rows if row.place == place]
        together = [row for row in there if self._ragged.takes(row.part)]
        end = min(bound for row in self.rows for bound in row.session.frontier.bounds if bound > place)
        exact = [row for row in together if row.request.frontier.exact is not None]
        usual = [row for row in together if row not in exact]
        for some in [usual, *_chunks(exact, _length)]:
            if some:
                self._run(some, place, end)
        for row in there:
            if row not in together:
                self._count(place, row.end)
                row.serve_alone(self.calls)

    def _run(self, rows: Sequence[Row], place: int, end: int) -> None:
        """Run the blocks place, ..., end - 1 for rows, and riders."""
        riders = self._riders(rows, place, end)
        parts = [*(row.part for row in rows), *(part for _, _, part in riders)]
        try:
            span = self._span(parts)
            hidden = span.hidden
            if place:
                states = [row.states for row in rows]
                hidden = torch.cat([*states, *(part.frontier.waiting(segment) for _, segment, part in riders)], dim=1)
            hidden = self._ragged.run(place, end, hidden, span, parts[0])
        except Exception:  # a position beyond the context, say, or no memory: let each fail, or succeed, by itself
            for row, segment in [*((row, row.request.segment) for row in rows), *((row, s) for row, s, _ in riders)]:
                frontier = row.session.frontier
                frontier.cache.truncate(*frontier.bounds[segment : segment + 2], frontier.passed[segment])
            for row in rows:
                self._count(row.request.frontier.bounds[row.request.segment], row.end)
                row.serve_alone(self.calls)
            return
        self._count(place, end)
        states = hidden.split([part.length for part in parts], dim=1)
        for (row, segment, part), state in zip(riders, states[len(rows) :], strict=True):
            part.frontier.advanced(segment, state)
            self.exits_lost += max(0, part.start + part.length - max(row.carried, part.start))
            row.carried = max(row.carried, part.start + part.length)
        for row, state in zip(rows, states, strict=False):
            if row.end == end:
                row.request.frontier.advanced(row.request.segment, state)
                row.resume(state, self.calls)
            else:
                row.place, row.hidden, row.since = end, state, self.calls

    def _riders(self, rows: Sequence[Row], place: int, end: int) -> list[tuple[Row, int, Part]]:
        """Other rows with tokens that have exited here, if they ride along."""
        found = []
        for row in self.rows if place and rows[0].session.frontier.exact is None else ():
            if row in rows or row.request is None or row.hidden is not None or type(row.session) is not Session:
                continue  # a session of somebody's own may count what waits
            frontier = row.session.frontier
            segment = frontier.bounds.index(place) if place in frontier.bounds else None
            if segment is None or frontier.bounds[segment + 1] != end or not frontier.waits(segment):
                continue
            if row.session.call.verify and end == self.backbone.n_blocks:
                continue  # a verification looks at the states of all drafts when they leave the last block
            part = Part(frontier, frontier.passed[segment], frontier.waits(segment))
            if row.place != place and frontier.exact is None and self._ragged.takes(part):
                found.append((row, segment, part))
        return found if found and self.rule.carries(len(rows), len(found)) else []

    def _span(self, parts: Sequence[Part]) -> Span:
        """Inputs of the blocks; the last call's for the same positions."""
        asked = [(part.frontier.tokens, part.start, part.length) for part in parts]
        if not _same_positions(self._last[0], asked):
            self._last = asked, self._ragged.capture(self.backbone, parts)
        return self._last[1]

    def _count(self, first: int, last: int) -> None:
        for block in range(first, last):
            self.block_calls[block] += 1


def decode_batch(
    calls: Sequence[DecodingCall], session: Callable[[DecodingCall], Session], rule: Gathering
) -> BatchOutput:
    """Decode all rows to their ends, on one model.

    Raises:
        EelibError: one row's, with its number; the others are given up.
    """
    started, sessions = time.perf_counter(), []
    for number, call in enumerate(calls):
        try:
            sessions.append(session(call))  # refuses what it cannot do before anything is packed
        except Exception as error:
            raise numbered(error, number) from error
    model, outputs = calls[0].model, [None] * len(calls)
    heads = [call.heads for call in calls if call.heads is not None][:1]
    with packed(model, *heads, exact=any(one.exact is not None for one in sessions)):
        batch = Batch(sessions[0].backbone, rule)
        for number, of_row in enumerate(sessions):
            batch.add(number, of_row)
        while batch.rows:
            for row in batch.step():
                if row.error is not None:
                    raise numbered(row.error, row.number)
                outputs[row.number] = row.output
    rows, seconds = [output.stats for output in outputs], time.perf_counter() - started
    shared = {"head_calls": batch.head_calls, "exits_lost": batch.exits_lost, "shared": batch.refusal is None}
    stats = BatchStats.of(rows, batch.block_calls, seconds, **shared)
    config = calls[0].generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    padding = next((token for token in (config.pad_token_id, *ends) if token is not None), 0)
    return BatchOutput.of(outputs, padding, stats)


def _kind(row: Row) -> tuple:
    """What requests have in common that can be served at once."""
    request = row.request
    if isinstance(request, Ask):
        lens = request.heads.config.kind == "none"  # the logit lens has nothing of its own
        return "ask", "lens" if lens else id(request.heads), request.depth, request.previous is None
    if isinstance(request, Unembed) and type(request.frontier) is Frontier:
        return "unembed", request.frontier.exact is None
    return "alone", row.number


def _ask(rows: Sequence[Row]) -> Iterable[tuple[Tensor, Tensor]]:
    requests = [row.request for row in rows]
    first, previous = requests[0], None
    if first.previous is not None:
        previous = torch.cat([request.previous for request in requests])
    final = first.heads.final(first.depth, torch.cat([request.hidden for request in requests]), previous)
    return list(zip(final.split(1), first.heads.read(first.depth, final).split(1), strict=True))


def _unembed(rows: Sequence[Row]) -> Iterable[Tensor]:
    requests = [row.request for row in rows]
    logits = requests[0].frontier.unembed(torch.cat([request.hidden for request in requests], dim=1))
    return logits.split([request.hidden.shape[1] for request in requests], dim=1)


def _same_positions(some: Sequence[tuple[Tensor, int, int]], others: Sequence[tuple[Tensor, int, int]]) -> bool:
    """Whether two calls take the same positions of the same texts."""
    if len(some) != len(others):
        return False
    return all(a is b and at == there for (a, *at), (b, *there) in zip(some, others, strict=True))


def _length(row: Row) -> int:
    return row.part.length


def _width(row: Row) -> int:
    return row.request.hidden.shape[1] if isinstance(row.request, Unembed) else 1


def _chunks(rows: Sequence[Row], size: Any) -> list[list[Row]]:
    """Rows in groups of at most MAX_ROWS positions, or of one row."""
    groups: list[list[Row]] = []
    room = 0
    for row in rows:
        if room < size(row) or not groups:
            groups.append([])
            room = MAX_ROWS
        groups[-1].append(row)
        room -= size(row)
    return groups
