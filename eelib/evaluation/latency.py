"""Latency model: time each component in place, and predict tokens per second."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.decoding.engine import generate
from eelib.decoding.frontier import Frontier
from eelib.decoding.policies import Confidence, FixedExit, Never
from eelib.decoding.session import DecodingCall, Session
from eelib.errors import InvalidInputError
from eelib.evaluation.replay import Work
from eelib.heads.exit_heads import ExitHeads
from eelib.timing import synchronize

POSITIONS = (1, 2, 4, 8)
"""Numbers of positions in one call at which verification is timed; seconds between them are interpolated."""
QUIET = 0.25
"""Quantile of a piece's calls that counts as its seconds: other jobs come and go, and slow the calls above it."""


@dataclass(frozen=True)
class Timings:
    """Seconds of the components of decoding on an otherwise idle machine.

    Attributes:
        pieces: seconds by ("call", positions) and ("block", positions), what a call of blocks takes and what each block
            in it; ("span", positions), ("head", depth), ("unembedding", positions) and ("prefill", positions of the
            prompt). Measured in place, with the caches as other pieces leave them; blocks are taken to be alike.
        per_round, per_token: bookkeeping, fitted to the remainder; a token is one emitted or drafted.
        scale: factor applied to all seconds since they were measured.
    """

    pieces: dict[tuple, float]
    per_round: float
    per_token: float
    scale: float = 1.0

    def seconds(self, work: Work) -> float:
        """Predicted seconds for some work."""
        pieces = sum(self._of(key) * times for key, times in work.calls.items())
        return pieces + self.per_round * work.rounds + self.per_token * (work.emitted + work.drafted)

    def tokens_per_second(self, work: Work) -> float:
        return work.emitted / self.seconds(work)

    def scaled(self, factor: float) -> "Timings":
        """Scale all seconds, as where other jobs slow the machine."""
        return Timings(
            {key: factor * seconds for key, seconds in self.pieces.items()}, factor * self.per_round,
            factor * self.per_token, factor * self.scale,
        )  # fmt: skip

    def with_heads(self, other: "Timings", depths: Sequence[int]) -> "Timings":
        """Timings with other heads at some depths, at their average cost.

        For exits by the model's logit lens, of which only a few are timed.
        """
        pieces = other.scaled(self.pieces["block", 1] / other.pieces["block", 1]).pieces
        seconds = float(np.mean([s for key, s in pieces.items() if key[0] == "head"]))
        blocks = {key: s for key, s in self.pieces.items() if key[0] != "head"}
        return replace(self, pieces=blocks | {("head", depth): seconds for depth in depths})

    def table(self) -> pd.DataFrame:
        """One row per piece and number of positions: piece, positions, seconds."""
        rows = []
        for (piece, of), seconds in sorted(self.pieces.items(), key=str):
            head = piece == "head"
            rows.append(
                {"piece": f"head at {of}" if head else piece, "positions": 1 if head else of, "seconds": seconds}
            )
        return pd.DataFrame(rows)

    def _of(self, key: tuple) -> float:
        piece, *of = key
        if piece == "blocks":
            first, last, n = of
            return self._of(("call", n)) + (last - first) * self._of(("block", n))
        if key in self.pieces:
            return self.pieces[key]
        if piece == "head":
            raise InvalidInputError(
                f"No head at depth {of[0]} was timed: pass time_pieces the heads that are replayed."
            )
        return _between({n: seconds for (name, n), seconds in self.pieces.items() if name == piece}, of[0])


def time_pieces(
    model: PreTrainedModel,
    heads: ExitHeads,
    prompts: Sequence[Tensor],
    *,
    positions: Sequence[int] = POSITIONS,
    max_new_tokens: int = 40,
) -> Timings:
    """Time all components of decoding in place.

    These are blocks, heads, embedding, unembedding and prefill, timed in runs of policies that between them call each
    with every number of positions. Policies take turns on each prompt, so that every piece meets quiet moments, and the
    lower quartile of its calls is what it takes then. The first prompt, cut short, warms up.

    Args:
        prompts: [1, position] each, at least two.
        positions: from 1 up; (1,) times heads and single positions only.

    Raises:
        InvalidInputError: too few prompts.
    """
    if len(prompts) < 2:
        raise InvalidInputError(f"{len(prompts)} prompts: expected at least two, since the first one warms up.")
    policies = [Never(), Confidence("max_prob", (2.0,) * len(heads.depths), back_off=False)]  # asks all, in vain
    policies += [FixedExit(depth, n - 1) for depth in heads.depths for n in positions[1:]]
    pieces, counts, remains = defaultdict(list), [], []
    for number, prompt in enumerate(tqdm(prompts, desc="timing the pieces", unit="prompt")):
        options = {"do_sample": False, "max_new_tokens": max_new_tokens if number else min(16, max_new_tokens)}
        for policy in policies:
            log: list[tuple[tuple, float]] = []
            timed = functools.partial(_Timed, log)
            stats = generate(model, prompt, heads=heads, policy=policy, session=timed, **options).stats
            if not number:
                continue
            for key, seconds in log:
                pieces[key].append(seconds)
            counts.append((stats.rounds, stats.emitted + stats.drafted))
            remains.append(stats.seconds - sum(seconds for _, seconds in log))
    per_round, per_token = np.linalg.lstsq(np.array(counts, float), np.array(remains), rcond=None)[0].clip(min=0)
    often = {key: found for key, found in pieces.items() if key[0] in ("head", "prefill") or key[-1] in positions}
    of_blocks = {key[1:]: found for key, found in often.items() if key[0] == "blocks"}
    others = {key: float(np.quantile(found, QUIET)) for key, found in often.items() if key[0] != "blocks"}
    return Timings(others | _per_block(of_blocks), float(per_round), float(per_token))


def _per_block(times: Mapping[tuple[int, int, int], Sequence[float]]) -> dict[tuple, float]:
    """Seconds of a call and of each block in it, by positions.

    A line through all calls by number of blocks, each cut with the weight of its calls: one that was rarely met, and
    disturbed, bends it little.

    Args:
        times: by first block, end and positions.
    """
    found = {}
    for n in {positions for *_, positions in times}:
        calls = [(last - first, np.quantile(of, QUIET), len(of)) for (first, last, at), of in times.items() if at == n]
        blocks, seconds, weight = np.array(calls, float).T
        lines = np.stack([np.full_like(blocks, len(set(blocks)) > 1), blocks], axis=1)  # one length: by block alone
        scale = np.sqrt(weight) / seconds  # relative errors
        (call, block), _ = nnls(lines * scale[:, None], seconds * scale)
        found |= {("call", n): float(call), ("block", n): float(block)}
    return found


def _between(known: dict[int, float], n: int) -> float:
    """Seconds for n positions, interpolated, or extrapolated from the last two."""
    at, seconds = zip(*sorted(known.items()), strict=True)
    if n > at[-1] and len(at) > 1:
        return seconds[-1] + (n - at[-1]) * (seconds[-1] - seconds[-2]) / (at[-1] - at[-2])
    return float(np.interp(n, at, seconds))


class _Timed(Session):
    """Session that logs the seconds of every piece, prefill as one."""

    def __init__(self, log: list[tuple[tuple, float]], call: DecodingCall):
        self.log = log
        super().__init__(call)

    def make_frontier(self, capacity):
        return _TimedFrontier(self.log, self.backbone, self.exit_depths, capacity, self.exact)

    def emit_full(self):
        first = self.frontier.began is not None
        super().emit_full()
        if first:
            self.log.append((("prefill", self.frontier.length), time.perf_counter() - self.frontier.began))
            self.frontier.began = None

    def ask(self, depth, hidden, prefix):
        return _timed(self.log, ("head", depth), super().ask, depth, hidden, prefix)


class _TimedFrontier(Frontier):
    """Frontier with timed pieces.

    began: start of prefill; None before and after it.
    """

    def __init__(self, log: list[tuple[tuple, float]], *arguments):
        super().__init__(*arguments)
        self.log, self.began = log, None

    def feed(self, tokens):
        if not self.length:
            self.began = time.perf_counter()
        super().feed(tokens)

    def _span(self, start, length):
        if self.began or (start, length) in self._spans:
            return super()._span(start, length)
        return _timed(self.log, ("span", length), super()._span, start, length)

    def _run(self, first, last, hidden, start):
        if self.began:
            return super()._run(first, last, hidden, start)
        self._span(start, hidden.shape[1])
        if self._graphs is not None:
            self._graphs.record_soon(hidden.shape[1])  # while warming up: calls that record take many times as long
        key = ("blocks", first, last, hidden.shape[1])
        return _timed(self.log, key, super()._run, first, last, hidden, start)

    def unembed(self, hidden):
        if self.began:
            return super().unembed(hidden)
        return _timed(self.log, ("unembedding", hidden.shape[1]), super().unembed, hidden)


def _timed(log: list, key: tuple, call: Callable, *arguments):
    synchronize()
    started = time.perf_counter()
    result = call(*arguments)
    synchronize()
    log.append((key, time.perf_counter() - started))
    return result


def predict_batches(runs: pd.DataFrame, fitted: Sequence[int]) -> pd.DataFrame:
    """Speed of batches predicted from what they count.

    A batch takes a price for each call of a block, position in it, call of a head, row in it, and token. The prices,
    none negative, are fitted on some sizes by least squares of relative errors.

    Args:
        runs: of `compare_batches`.
        fitted: sizes whose runs set the prices; others are predicted.

    Returns:
        One row per size and decoder that counts: rows, kind, gather, measured and predicted [tokens/s], fitted
        (whether its size was), and what the predicted seconds go to, as shares: share_calls (of blocks),
        share_positions (in blocks), share_heads, share_tokens.

    Raises:
        InvalidInputError: none of the runs is of those sizes.
    """
    counts = ["block_calls", "block_positions", "head_calls", "head_positions", "tokens"]
    keys = ["rows", "kind", "gather"]
    table = runs.dropna(subset=counts).groupby(keys, sort=False)[[*counts, "seconds", "emitted"]].median().reset_index()
    known = table[table.rows.isin(fitted)]
    if known.empty:
        raise InvalidInputError(f"fitted={list(fitted)}: expected sizes among {sorted(set(table.rows))}.")
    size = table[counts].abs().max().replace(0, 1.0)  # so that no count weighs more in the fit for its unit
    scaled = (known[counts] / size).to_numpy() / known.seconds.to_numpy()[:, None]
    prices, _ = nnls(scaled, np.ones(len(known)))
    parts = table[counts] / size * prices
    seconds = parts.sum(axis=1)
    parts = parts.assign(head_calls=parts.head_calls + parts.head_positions).drop(columns="head_positions")
    shares = parts.div(seconds, axis=0).set_axis(
        [f"share_{of}" for of in ("calls", "positions", "heads", "tokens")], axis=1
    )
    measured, predicted = table.emitted / table.seconds, table.emitted / seconds
    told = table[keys].assign(measured=measured, predicted=predicted, fitted=table.rows.isin(fitted))
    return told.join(shares)
