"""Frontier: a KV cache by layer, and states waiting at exits.

Blocks are split at the exit depths into segments. A position that exits leaves its hidden state at that boundary; the
next run of the segment above takes all states that wait there in one call. No position passes a block twice.
"""

import statistics
import time
import weakref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eelib.backbone.graphs import Graphs, replayable
from eelib.backbone.kv_cache import KVCache
from eelib.backbone.packing import packed
from eelib.backbone.segments import Backbone, Span
from eelib.decoding.batches.steps import Advance, Steps, stepwise
from eelib.decoding.bitwise import RowExact
from eelib.errors import UnsupportedError

AFFORDABLE = 0.03
"""Maximum extra time of bit-exact verification, as a share, for it to be the default."""

_affordable: weakref.WeakKeyDictionary[Backbone, dict[int, bool]] = weakref.WeakKeyDictionary()


class Frontier:
    """Progress of one sequence through the segments of a backbone.

    Segment s runs the blocks bounds[s], ..., bounds[s + 1] - 1; the last one ends at the model's last block.

    Args:
        backbone: the model.
        depths: segment boundaries, ascending; may be empty.
        capacity: positions to allocate.
        exact: what gives each position after the first feed the bits of a call of its own; None for the model's own
            blocks.

    Attributes:
        blocks: what runs, the model's own or their exact stand-ins.
    """

    def __init__(self, backbone: Backbone, depths: tuple[int, ...], capacity: int, exact: RowExact | None = None):
        self.backbone = backbone
        self.bounds = (0, *depths, backbone.n_blocks)
        self.cache = KVCache(backbone.model.config, capacity)
        self.block_positions = [0] * backbone.n_blocks
        self.block_calls = [0] * backbone.n_blocks
        self.exact = exact
        self.blocks = backbone.blocks if exact is None else exact.blocks
        self._graphs: Graphs | None = None  # made when first needed, inside `packed`
        self.passed = [0] * self.n_segments  # positions that have left each segment
        self._waiting: list[Tensor | None] = [None] * self.n_segments  # [1, position, hidden] at each exit below
        self._tokens: Tensor | None = None  # [1, position], all that were fed
        self._spans: dict[tuple[int, int], Span] = {}
        self._finished: Tensor | None = None  # [1, position, hidden], what `complete` returned last
        self._finished_from = 0

    @property
    def n_segments(self) -> int:
        return len(self.bounds) - 1

    @property
    def length(self) -> int:
        """Number of positions fed."""
        return 0 if self._tokens is None else self._tokens.shape[1]

    @property
    def completed(self) -> int:
        """Number of positions that have passed every block."""
        return self.passed[-1]

    @property
    def tokens(self) -> Int[Tensor, "1 position"]:
        """All tokens fed."""
        return self._tokens

    def feed(self, tokens: Int[Tensor, "1 position"]) -> None:
        """Let the next tokens wait at the entrance of segment 0."""
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], dim=1)
        self._spans.clear()  # spans that end before the newest position are never asked for again

    def waits(self, segment: int) -> int:
        """Number of positions at the entrance of a segment."""
        return (self.passed[segment - 1] if segment else self.length) - self.passed[segment]

    def waiting(self, segment: int) -> Float[Tensor, "1 position hidden"]:
        """States of the positions at the entrance of a segment."""
        return self._waiting[segment] if segment else self._span(self.passed[0], self.waits(0)).hidden

    def advance(self, segment: int) -> Float[Tensor, "1 position hidden"]:
        """Run a segment on all waiting positions; return their states.

        They then wait at the entrance of the next segment, if there is one.
        """
        first, last = self.bounds[segment : segment + 2]
        hidden = self._run(first, last, self.waiting(segment), self.passed[segment])
        self.advanced(segment, hidden)
        return hidden

    def advanced(self, segment: int, hidden: Float[Tensor, "1 position hidden"]) -> None:
        """Take note that all waiting positions have passed a segment.

        hidden: their states behind it.
        """
        for block in range(self.bounds[segment], self.bounds[segment + 1]):
            self.block_positions[block] += hidden.shape[1]
            self.block_calls[block] += 1
        self._waiting[segment] = None
        self.passed[segment] += hidden.shape[1]
        if segment + 1 < self.n_segments:
            self._arrive(segment + 1, hidden)

    @stepwise
    def complete(self) -> Steps:
        """Run all waiting positions to the end; return their states."""
        for segment in range(self.n_segments):
            if self.waits(segment):
                hidden = yield Advance(self, segment)
        self._finished, self._finished_from = hidden, self.completed - hidden.shape[1]
        return hidden

    def finished(self, position: int) -> Float[Tensor, "1 hidden"]:
        """Final state of a position from the last `complete`, before any rollback."""
        return self._finished[:, position - self._finished_from]

    def propagate(self, segment: int) -> None:
        """Let waiting positions pass the blocks above unchanged (CALM, arXiv 2207.07061).

        Their keys and values are made from the state at the exit, unlike the model's.
        """
        start, hidden = self.passed[segment], self.waiting(segment)
        span = self._span(start, hidden.shape[1])
        for block in range(self.bounds[segment], self.bounds[-1]):
            self.backbone.run(block, block + 1, hidden, span)
        self._waiting[segment] = None
        for above in range(segment, self.n_segments):
            self.passed[above] += hidden.shape[1]

    def unembed(self, hidden: Float[Tensor, "1 position hidden"]) -> Float[Tensor, "1 position vocab"]:
        """The model's logits for states from `complete`."""
        return self.backbone.unembed(hidden) if self.exact is None else self.exact.unembed(self.backbone, hidden)

    def roll_back(self, length: int) -> None:
        """Drop every position from `length` on, in all segments."""
        if length >= self.length:
            return
        self._tokens = self._tokens[:, :length]
        self._spans.clear()
        for segment in range(self.n_segments):
            self.passed[segment] = min(self.passed[segment], length)
            self.cache.truncate(self.bounds[segment], self.bounds[segment + 1], length)
            if self._waiting[segment] is not None:
                kept = self._waiting[segment][:, : length - self.passed[segment]]
                self._waiting[segment] = kept if kept.shape[1] else None

    def _run(self, first: int, last: int, hidden: Tensor, start: int) -> Tensor:
        if start == 0:
            return self.backbone.run(first, last, hidden, self._span(start, hidden.shape[1]))
        parts = []
        for part in [hidden] if self.exact is None else hidden.split(self.exact.at_once, dim=1):
            parts.append(self._run_together(first, last, part, self._span(start, part.shape[1])))
            start += part.shape[1]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _run_together(self, first: int, last: int, hidden: Tensor, span: Span) -> Tensor:
        if not replayable(hidden):
            return self.backbone.run(first, last, hidden, span, self.blocks)
        if self._graphs is None:
            self._graphs = Graphs.of(self.blocks)
        return self._graphs.run(first, last, hidden, span, self.cache)

    def _arrive(self, segment: int, hidden: Tensor) -> None:
        waiting = self._waiting[segment]
        self._waiting[segment] = hidden if waiting is None else torch.cat([waiting, hidden], dim=1)

    def _span(self, start: int, length: int) -> Span:
        if (start, length) not in self._spans:
            tokens = self._tokens[:, start : start + length]
            self._spans[start, length] = self.backbone.capture(tokens, start, self.cache)
        return self._spans[start, length]


def exact_is_affordable(backbone: Backbone) -> bool:
    """Whether `exact=None` verifies bit by bit.

    It does on a CPU in 16-bit types, where outputs would differ otherwise, if it costs at most `AFFORDABLE`, as timed
    once for this model and number of threads.
    """
    model, threads = backbone.model, torch.get_num_threads()
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
        return False
    known = _affordable.setdefault(backbone, {})
    if threads not in known:  # timed before it is proved, which takes longer
        known[threads] = _cost_of_exact(backbone) <= AFFORDABLE and _takes_several(backbone)
    return known[threads]


def _takes_several(backbone: Backbone) -> bool:
    """Whether calls of several positions are proved exact."""
    try:
        return RowExact.of(backbone).at_once > 1
    except UnsupportedError:
        return False


@torch.no_grad()
def _cost_of_exact(backbone: Backbone, rows: int = 4, prompt: int = 48, repeats: int = 9) -> float:
    """Extra time of bit-exact verification, as a share; medians of interleaved runs."""
    frontiers = [Frontier(backbone, (), prompt + rows * repeats, exact) for exact in (None, RowExact(backbone))]
    tokens = torch.zeros(1, prompt, dtype=torch.long)
    seconds: tuple[list[float], list[float]] = [], []
    with packed(backbone.model):
        for frontier in frontiers:
            Graphs.of(frontier.blocks).record_soon(rows)
            frontier.feed(tokens)
            frontier.complete()
        for _ in range(repeats):
            for frontier, found in zip(frontiers, seconds, strict=True):
                frontier.feed(tokens[:, :rows])
                started = time.perf_counter()
                frontier.unembed(frontier.complete())
                found.append(time.perf_counter() - started)
    usual, exact = (statistics.median(found[3:]) for found in seconds)  # the first ones record the blocks
    return exact / usual - 1
