"""Policies: at which exit a token is drafted, and how many drafts are made before the model verifies them.

A policy is frozen; what changes during one call lives in the state that `start` makes. To write one, subclass
`Policy` and give what differs: any rule that reads the prompt, the depth, the head's logits, the hidden state or the
position, or that learns from the rounds so far, fits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from eelib.calibration.thresholds import Calibration
from eelib.confidence.metrics import check_metric, confidence
from eelib.decoding.ngrams import NGrams
from eelib.errors import HeadsError, InvalidInputError
from eelib.heads.exit_heads import ExitHeads
from eelib.settings import COUNT, SHARE, Number, flag, settle


class Policy:
    """The protocol, and its trivial answers: never exit.

    Sampling stays unbiased as long as every answer depends on the prefix and on earlier rounds only.
    """

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        """The depths, ascending, at which a head may be asked. Where the heads given have none, the model's own norm
        and unembedding read the state. The number of blocks may be among them: the full model speaks there.

        Raises:
            HeadsError: the heads given do not fit the policy.
        """
        return ()

    def check(self, heads: ExitHeads | None) -> None:
        """Raises HeadsError where these are not the heads that the policy was made for."""

    def start(self, prompt: Int[Tensor, "1 position"], head_depths: Sequence[int]) -> Any:
        """The state of one call."""
        return None

    def draft_limit(self, state: Any) -> int:
        """Most drafts in the round that begins; 0: the full model speaks. Not asked without verification."""
        return 1

    def look_up(self, state: Any, prefix: Int[Tensor, "1 position"]) -> Sequence[int]:
        """Tokens drafted before any head is asked, from the text alone; where there are some, they are all of the
        round's drafts. Not asked without verification."""
        return ()

    def asks(self, state: Any, depth: int, position: int) -> bool:
        """Whether the head at `depth` is run for the token after `position`."""
        return True

    def exits(
        self,
        state: Any,
        depth: int,
        logits: Float[Tensor, "1 classes"],
        hidden: Float[Tensor, "1 hidden"],
        position: int,
    ) -> tuple[bool, float]:
        """Whether the token after `position` is drafted at `depth`, and the score that decided (NaN where none did).

        `logits` are the head's raw ones, before any logits processor.
        """
        return False, float("nan")

    def observe(self, state: Any, drafted: int, accepted: int) -> None:
        """Told after each round how it went."""


@dataclass(frozen=True)
class Never(Policy):
    """The full model speaks every token."""


@dataclass(frozen=True)
class FixedExit(Policy):
    """Every draft comes from one depth, and rounds have one length: LayerSkip's decoding (arXiv 2404.16710).

    Without heads the model's own norm and unembedding read the state there.
    """

    depth: int
    draft_length: int

    def __post_init__(self):
        settle(self, depth=COUNT, draft_length=COUNT)

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        if self.depth not in head_depths:
            raise HeadsError(f"FixedExit(depth={self.depth}): the heads given are at depths {list(head_depths)}.")
        return (self.depth,)

    def draft_limit(self, state):
        return self.draft_length

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")


@dataclass
class _LookedUp:
    """What `Lookup` knows of the text. limit: drafts in the next round of its own. drafting: whether this is one."""

    ngrams: NGrams
    limit: int
    drafting: bool = False


@dataclass(frozen=True)
class Lookup(Policy):
    """Drafts are what followed the last few tokens where they stood before, in the prompt or in the answer: prompt
    lookup decoding (Saxena 2023; arXiv 2304.04487), which costs no head and pays where a text repeats itself.

    max_draft: most drafts in a round. Rounds begin with two and double while all are accepted.
    record: the share of the times that such a continuation must have been right lately in this text, for each length of
        the run by itself; else nothing is drafted, but the record goes on, so that lookup comes back where it pays.
    sizes: lengths of the runs of tokens that are looked for.
    """

    max_draft: int = 8
    record: float = 0.4
    sizes: tuple[int, ...] = (4, 3, 2)

    def __post_init__(self):
        settle(self, max_draft=COUNT, record=SHARE, sizes=lambda name, sizes: tuple(COUNT(name, n) for n in sizes))
        if not self.sizes:
            raise InvalidInputError("sizes=(): expected at least one length of a run of tokens.")

    def start(self, prompt, head_depths):
        ngrams = NGrams(self.sizes)
        ngrams.extend(prompt[0].tolist(), judged=False)
        return _LookedUp(ngrams, limit=min(2, self.max_draft))

    def draft_limit(self, state):
        return 0

    def look_up(self, state, prefix):
        state.ngrams.extend(prefix[0, len(state.ngrams.text) :].tolist())
        size, tokens = state.ngrams.continuation(state.limit)
        state.drafting = size > 0 and state.ngrams.records[size] >= self.record
        return tokens if state.drafting else ()

    def observe(self, state, drafted, accepted):
        if state.drafting:
            state.limit = min(2 * state.limit if accepted == drafted else max(accepted, 2), self.max_draft)


@dataclass
class _Rounds:
    """What `Confidence` knows of the rounds so far. limit: drafts in the next one. pause: rounds to sit out. lookup:
    what its `lookup` knows."""

    thresholds: dict[int, float | None]
    limit: int
    misses: int = 0
    pause: int = 0
    lookup: Any = None


@dataclass(frozen=True)
class Confidence(Policy):
    """The first head whose score reaches its threshold speaks: DSSD when verified, plain early exit when not.

    Where a `lookup` is given, it is asked before the heads, which speak where its record is poor.

    metric: the score.
    thresholds: one a head, in the order of their depths; `None` = that head is never asked.
    max_draft: drafts per round at most. A round ends sooner where no head is sure.
    depths: the heads' depths, where known, so that thresholds cannot be used at others.
    heads_fingerprint: of the heads that the thresholds were calibrated for, where known; others are refused.
    back_off: whether rounds begin short, double while all drafts are accepted, and stop for 1, 3, 7, ... rounds after
        the second, third, fourth, ... round in a row of which nothing was accepted. Confident heads that are wrong then
        cost little. Without it every round may draft `max_draft` tokens, as in the paper.
    lookup: drafts from the text itself; None for none.
    """

    metric: str
    thresholds: tuple[float | None, ...]
    max_draft: int = 16
    depths: tuple[int, ...] | None = None
    back_off: bool = True
    heads_fingerprint: str | None = None
    lookup: Lookup | None = None

    def __post_init__(self):
        check_metric(self.metric)
        settle(self, thresholds=thresholds_or_none, max_draft=COUNT, back_off=flag)

    @classmethod
    def from_calibration(
        cls,
        calibration: Calibration,
        max_draft: int = 16,
        back_off: bool = True,
        deepest: int | None = None,
        lookup: Lookup | None = None,
    ) -> "Confidence":
        """The policy that uses a calibration's metric and thresholds; with `deepest`, heads at greater depths are not
        asked."""
        thresholds = calibration.thresholds
        if deepest is not None:
            asked = zip(calibration.depths, thresholds, strict=True)
            thresholds = tuple(threshold if depth <= deepest else None for depth, threshold in asked)
        given = calibration.metric, thresholds, max_draft, calibration.depths, back_off
        return cls(*given, heads_fingerprint=calibration.heads_fingerprint, lookup=lookup)

    def check(self, heads):
        if self.heads_fingerprint is None:
            return
        found = None if heads is None else heads.fingerprint()
        if found != self.heads_fingerprint:
            raise HeadsError(
                f"These thresholds were calibrated for the heads {self.heads_fingerprint[:12]} (fingerprint), not for "
                f"{'a model without heads' if found is None else found[:12]}: calibrate anew on traces of these heads."
            )

    def exit_depths(self, head_depths):
        if len(self.thresholds) != len(head_depths):
            raise HeadsError(
                f"{len(self.thresholds)} thresholds for {len(head_depths)} heads at depths {list(head_depths)}: "
                "expected one threshold (or None) a head."
            )
        if self.depths is not None and tuple(self.depths) != tuple(head_depths):
            raise HeadsError(f"Calibrated for depths {list(self.depths)}, used with heads at {list(head_depths)}.")
        return tuple(d for d, t in zip(head_depths, self.thresholds, strict=True) if t is not None)

    def start(self, prompt, head_depths):
        thresholds = dict(zip(head_depths, self.thresholds, strict=True))
        looked_up = None if self.lookup is None else self.lookup.start(prompt, head_depths)
        return _Rounds(thresholds, limit=1 if self.back_off else self.max_draft, lookup=looked_up)

    def look_up(self, state, prefix):
        return () if self.lookup is None else self.lookup.look_up(state.lookup, prefix)

    def draft_limit(self, state):
        return 0 if state.pause else state.limit

    def exits(self, state, depth, logits, hidden, position):
        score = confidence(logits, (self.metric,))[self.metric].item()
        return score >= state.thresholds[depth], score

    def observe(self, state, drafted, accepted):
        if self.lookup is not None and state.lookup.drafting:
            self.lookup.observe(state.lookup, drafted, accepted)
            return
        if not self.back_off:
            return
        if state.pause:
            state.pause -= 1
        elif accepted:
            state.misses = 0
            state.limit = min(2 * state.limit, self.max_draft) if accepted == drafted else accepted
        elif drafted:
            state.misses += 1
            state.limit, state.pause = 1, 2 ** (state.misses - 1) - 1


_SAVED = (Never, FixedExit, Lookup, Confidence)


def keep_policy(heads: ExitHeads, policy: Policy, **measured: object) -> None:
    """Makes a policy part of heads, so that it is saved, pushed and loaded with them: the one they were tuned to.

    Args:
        policy: one of this package's own.
        measured: what is known of it, such as its speed and on which machine.

    Raises:
        InvalidInputError: another kind of policy, which a file cannot hold.
    """
    if type(policy) not in _SAVED:
        names = ", ".join(kind.__name__ for kind in _SAVED)
        raise InvalidInputError(f"{type(policy).__name__} cannot be saved: expected one of {names}.")
    heads.policy_record = {
        "policy": type(policy).__name__, "settings": asdict(policy), "heads_fingerprint": heads.fingerprint(),
        "measured": measured,
    }  # fmt: skip


def kept_policy(heads: ExitHeads) -> Policy:
    """The policy that `keep_policy` made part of these heads.

    Raises:
        HeadsError: there is none, or the heads or their backbone have changed since.
    """
    record = heads.policy_record
    if not record:
        raise HeadsError("These heads come without a policy: tune one, and `eelib.decoding.keep_policy` it.")
    if record["heads_fingerprint"] != heads.fingerprint():
        raise HeadsError(
            f"The policy was tuned for the heads {record['heads_fingerprint'][:12]} (fingerprint), these are "
            f"{heads.fingerprint()[:12]}: they or their backbone have changed. Tune anew."
        )
    settings = dict(record["settings"])
    if settings.get("lookup") is not None:
        settings["lookup"] = Lookup(**settings["lookup"])
    if settings.get("depths") is not None:
        settings["depths"] = tuple(settings["depths"])
    return {kind.__name__: kind for kind in _SAVED}[record["policy"]](**settings)


def thresholds_or_none(name: str, values: Sequence[float | None]) -> tuple[float | None, ...]:
    """A number for each head, infinite ones too, or None."""
    return tuple(Number(infinite=True, optional=True)(name, value) for value in values)
