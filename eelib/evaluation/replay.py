"""Replay: a policy's rounds and calls on the model's text, from traces.

Traces are of the final text, so rounds and accepted drafts equal the engine's, up to near-ties, stops and a text that
ends before its length limit. So do all drafts of a fixed exit whose head never declines. What a head does after a wrong
draft is in no trace: there, a fixed exit is taken to draft on, and other heads to exit as on the text itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eelib.decoding.policies import Confidence, FixedExit, Lookup, Outcome, Policy
from eelib.errors import InvalidInputError


@dataclass
class Work:
    """Work of decoding.

    Attributes:
        emitted, rounds, drafted, accepted: as in `DecodingStats`.
        calls: number of calls by piece: ("blocks", first, last, positions) for the blocks first, ..., last - 1;
            ("span", positions) for embedding and masks; ("head", depth); ("unembedding", positions); ("prefill",
            positions of the prompt).
    """

    emitted: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    calls: Counter = field(default_factory=Counter)

    def __add__(self, other: "Work") -> "Work":
        names = ("emitted", "rounds", "drafted", "accepted", "calls")
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class ExitDecisions:
    """What heads would do for each new token of one text.

    Entry 0 is the token that prefill emits.

    Attributes:
        depths: of all heads.
        exit_depths: where heads are asked, ascending.
        at: index into `exit_depths` of the token's draft; -1 where no head drafts.
        right: whether that draft is the model's own token.
        asked: which of the heads at `exit_depths` are asked.
    """

    depths: tuple[int, ...]
    exit_depths: tuple[int, ...]
    at: Int[np.ndarray, " token"]
    right: Bool[np.ndarray, " token"]
    asked: Bool[np.ndarray, "token cut"]


def replay_policy(
    policy: Policy,
    traces: pd.DataFrame,
    n_blocks: int,
    prompt_lengths: Sequence[int],
    sequences: Sequence[Tensor] | None = None,
) -> Work:
    """Work of verified decoding by a policy, on the model's texts.

    Args:
        policy: `Never`, `FixedExit`, `Confidence` or `Lookup`.
        traces: of greedy texts, each from the last position of its prompt to the last but one of the text. A column
            `draft` (1, 2, ...) distinguishes predictions for the first draft in a row, the second, ...; the last stands
            for all later ones.
        n_blocks: of the model.
        prompt_lengths: one per sequence in the traces, in their order.
        sequences: the texts, [position] each; needed for lookup.

    Raises:
        InvalidInputError: another policy, or lookup without texts.
        HeadsError: the policy asks heads that the traces lack.
    """
    looks_up = isinstance(policy, Lookup) or getattr(policy, "lookup", None) is not None
    if looks_up and sequences is None:
        raise InvalidInputError(f"{policy} looks drafts up in the text: give replay_policy the sequences.")
    total = Work()
    tables = [table for _, table in traces.groupby("sequence")]
    texts = [torch.zeros(n, dtype=torch.long) for n in prompt_lengths] if sequences is None else sequences
    for table, prompt_length, text in zip(tables, prompt_lengths, texts, strict=True):
        drafts = [part for _, part in table.groupby("draft")] if "draft" in table else [table]
        exits = [exit_decisions(policy, part) for part in drafts]
        total += replay_text(policy, exits, n_blocks, prompt_length, text)
    return total


def exit_decisions(policy: Policy, traces: pd.DataFrame) -> ExitDecisions:
    """What the heads that a policy asks would do on one text."""
    of_depth = {int(depth): table for depth, table in traces.sort_values("position").groupby("depth")}
    depths, n = tuple(of_depth), len(traces) // len(of_depth)
    cuts = policy.exit_depths(depths)
    if not cuts:
        return ExitDecisions(depths, (), np.full(n, -1), np.zeros(n, bool), np.zeros((n, 0), bool))
    tables = [of_depth[cut] for cut in cuts]
    speaks = np.stack([table.head_token.to_numpy() >= 0 for table in tables], axis=1)
    agrees = np.stack([table.agrees.to_numpy(bool) for table in tables], axis=1)
    if isinstance(policy, Confidence):
        thresholds = dict(zip(depths, policy.thresholds, strict=True))
        scores = np.stack([table[policy.metric].to_numpy() for table in tables], axis=1)
        speaks &= scores >= [thresholds[cut] for cut in cuts]
    elif not isinstance(policy, FixedExit):
        raise InvalidInputError(f"{policy} cannot be replayed: expected Never, FixedExit, Confidence or Lookup.")
    at = np.where(speaks.any(axis=1), speaks.argmax(axis=1), -1)
    right = (at >= 0) & agrees[np.arange(n), at]
    asked = np.arange(len(cuts)) <= np.where(at < 0, len(cuts), at)[:, None]
    return ExitDecisions(depths, cuts, at, right, asked)


def replay_text(
    policy: Policy,
    exits: Sequence[ExitDecisions],
    n_blocks: int,
    prompt_length: int,
    text: Int[Tensor, " position"],
) -> Work:
    """Rounds of one text, with the engine's order of calls (`eelib.decoding`).

    Args:
        exits: for the first draft in a row, the second, ...; the last stands for all later ones.
        text: prompt and new tokens; without lookup only the prompt's length matters.
    """
    first = exits[0]
    work, n = Work(emitted=len(first.at)), len(first.at)
    drafts_on = replace(first, at=np.zeros_like(first.at), asked=np.ones_like(first.asked))
    work.calls["prefill", prompt_length] += 1
    state = policy.start(text[None, :prompt_length], first.depths)
    line = _Line((0, *first.exit_depths, n_blocks), work.calls)
    done = 1  # tokens emitted; all but the newest are through all blocks
    while done < n:
        work.rounds += 1
        limit, right, blocks, asked = policy.draft_limit(state), [], 0, 0
        begin = prompt_length + done
        looked_up = policy.look_up(state, text[None, :begin])[: n - done - 1]
        if looked_up:
            right = [token == own for token, own in zip(looked_up, text[begin:].tolist(), strict=False)]
            line.feed(1 + len(looked_up))
        else:
            while True:
                line.feed()
                decided = exits[min(len(right), len(exits) - 1)]
                if isinstance(policy, FixedExit) and False in right:
                    decided = drafts_on
                token = min(done + len(right), n - 1)  # behind a wrong draft: as if the text went on so
                if len(right) == limit:
                    break
                asked += int(decided.asked[token].sum())
                if not line.draft(decided, token):
                    break
                right.append(bool(decided.right[token]))
                blocks += decided.exit_depths[decided.at[token]]
                if done + len(right) == n:
                    break  # the last token of a text is not fed
        work.calls["unembedding", line.complete()] += 1
        accepted = right.index(False) if False in right else len(right)
        policy.observe(state, Outcome(len(right), accepted, blocks / n_blocks, asked))
        work.drafted, work.accepted = work.drafted + len(right), work.accepted + accepted
        done = min(n, done + accepted + 1)
        line.roll_back(done - 1)
    return work


class _Line:
    """Stand-in for the frontier: new positions that have passed each segment."""

    def __init__(self, bounds: tuple[int, ...], calls: Counter):
        self.bounds, self.calls, self.fed, self.passed = bounds, calls, 0, [0] * (len(bounds) - 1)
        self.spans: set[tuple[int, int]] = set()

    def feed(self, n: int = 1) -> None:
        self.spans = {(self.fed, n)}
        self.fed += n
        self.calls["span", n] += 1

    def draft(self, exits: ExitDecisions, token: int) -> bool:
        """Take the newest position to its exit; return whether a head drafts."""
        for segment, depth in enumerate(exits.exit_depths):
            self._advance(segment)
            if exits.asked[token, segment]:
                self.calls["head", depth] += 1
            if exits.at[token] == segment:
                return True
        return False

    def complete(self) -> int:
        """Take all positions to the end; return how many got there."""
        before = self.passed[-1]
        for segment in range(len(self.passed)):
            self._advance(segment)
        return self.passed[-1] - before

    def roll_back(self, length: int) -> None:
        self.fed, self.passed = min(self.fed, length), [min(passed, length) for passed in self.passed]

    def _advance(self, segment: int) -> None:
        start, end = self.passed[segment], self.fed if segment == 0 else self.passed[segment - 1]
        if end == start:
            return
        if (start, end - start) not in self.spans:
            self.spans.add((start, end - start))
            self.calls["span", end - start] += 1
        self.calls["blocks", self.bounds[segment], self.bounds[segment + 1], end - start] += 1
        self.passed[segment] = end
