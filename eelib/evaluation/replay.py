"""What a policy would do on a text that the model wrote: every round of it, and every call of every piece, off traces.

Traces are of the text as it is, so rounds and accepted drafts come out as the engine would make them, up to near-ties,
stops and a text that ends before its length limit. So do all drafts of a fixed exit whose head never declines. Whether
a head speaks behind a wrong draft of a round is in no trace: there, heads are taken to exit as on the text itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from eelib.decoding.policies import Confidence, FixedExit, Policy
from eelib.errors import InvalidInputError


@dataclass
class Work:
    """What decoding took.

    calls: how often each piece was called: ("blocks", first, last, positions) for the blocks first, ..., last - 1,
        ("span", positions) for embedding and masks, ("head", depth), ("unembedding", positions); and prefill, which is
        ("prefill", positions of the prompt).
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
    """What heads at some cuts would do for each new token of one text; entry 0 is the token that prefill emits.

    depths: of all heads. cuts: where heads are asked, ascending.
    at: index of the cut at which the token's draft leaves; -1 where no head speaks.
    right: whether that draft is the model's own token. asked: which of the heads at the cuts are asked.
    """

    depths: tuple[int, ...]
    exit_depths: tuple[int, ...]
    at: Int[np.ndarray, " token"]
    right: Bool[np.ndarray, " token"]
    asked: Bool[np.ndarray, "token cut"]


def replay_policy(policy: Policy, traces: pd.DataFrame, n_blocks: int, prompt_lengths: Sequence[int]) -> Work:
    """Verified decoding by a policy, on texts of the model's own, as one sum over the texts.

    Args:
        policy: `Never`, `FixedExit` or `Confidence`.
        traces: of greedy texts, each recorded from the last position of its prompt to the last but one of the text.
        n_blocks: of the model.
        prompt_lengths: one a sequence in the traces, in their order.

    Raises:
        InvalidInputError: another policy. HeadsError: the policy asks heads that the traces lack.
    """
    total = Work()
    texts = [table for _, table in traces.groupby("sequence")]
    for table, prompt_length in zip(texts, prompt_lengths, strict=True):
        total += replay_text(policy, exit_decisions(policy, table), n_blocks, prompt_length)
    return total


def exit_decisions(policy: Policy, traces: pd.DataFrame) -> ExitDecisions:
    """What the heads that a policy asks would do on one traced text."""
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
        raise InvalidInputError(f"{policy} cannot be replayed: expected Never, FixedExit or Confidence.")
    at = np.where(speaks.any(axis=1), speaks.argmax(axis=1), -1)
    right = (at >= 0) & agrees[np.arange(n), at]
    asked = np.arange(len(cuts)) <= np.where(at < 0, len(cuts), at)[:, None]
    return ExitDecisions(depths, cuts, at, right, asked)


def replay_text(policy: Policy, exits: ExitDecisions, n_blocks: int, prompt_length: int) -> Work:
    """The rounds of one text, with the engine's own order of calls (`eelib.decoding`)."""
    work, n = Work(emitted=len(exits.at)), len(exits.at)
    work.calls["prefill", prompt_length] += 1
    state = policy.start(torch.zeros(1, prompt_length, dtype=torch.long), exits.depths)
    line = _Line((0, *exits.exit_depths, n_blocks), work.calls)
    done = 1  # tokens emitted; all but the newest are through all blocks
    while done < n:
        work.rounds += 1
        limit, drafts = policy.draft_limit(state), 0
        while True:
            line.feed()
            token = min(done + drafts, n - 1)  # behind a wrong draft: as if the text went on so
            if drafts == limit or not line.draft(exits, token):
                break
            drafts += 1
            if done + drafts == n:
                break  # the last token of a text is not fed
        work.calls["unembedding", line.complete()] += 1
        right = exits.right[done : done + drafts]
        accepted = drafts if right.all() else int(right.argmin())
        policy.observe(state, drafts, accepted)
        work.drafted, work.accepted = work.drafted + drafts, work.accepted + accepted
        done = min(n, done + accepted + 1)
        line.roll_back(done - 1)
    return work


class _Line:
    """The frontier, loss_mask: how many of the new positions have passed each segment."""

    def __init__(self, bounds: tuple[int, ...], calls: Counter):
        self.bounds, self.calls, self.fed, self.passed = bounds, calls, 0, [0] * (len(bounds) - 1)
        self.spans: set[tuple[int, int]] = set()

    def feed(self) -> None:
        self.fed += 1
        self.spans = {(self.fed - 1, 1)}
        self.calls["span", 1] += 1

    def draft(self, exits: ExitDecisions, token: int) -> bool:
        """Takes the newest position up to where its draft leaves, asking heads on the way; whether one speaks."""
        for segment, depth in enumerate(exits.exit_depths):
            self._advance(segment)
            if exits.asked[token, segment]:
                self.calls["head", depth] += 1
            if exits.at[token] == segment:
                return True
        return False

    def complete(self) -> int:
        """Takes all to the end; returns how many positions got there."""
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
