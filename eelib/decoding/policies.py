"""Policies: where tokens are drafted, and how many before verification.

A policy is frozen; the state of one call comes from `start`. To write one, subclass `Policy` and override what differs:
it may use the prompt, the depth, the head's logits, the hidden state, the position, and earlier rounds.
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


@dataclass(frozen=True)
class Outcome:
    """What a round of verified decoding brought, and what it took.

    Attributes:
        drafted, accepted: numbers of drafts.
        passes: the drafts' way to their exits, in passes of the full model: the sum of their depths over the number of
            blocks.
        heads: number of heads asked.
    """

    drafted: int
    accepted: int
    passes: float = 0.0
    heads: int = 0


class Policy:
    """Base class of policies; by itself it never exits.

    Sampling stays unbiased as long as every answer depends on the prefix and earlier rounds only.

    Example:
        >>> class EveryOther(Policy):
        ...     def exit_depths(self, head_depths):
        ...         return (3,)
        ...
        ...     def draft_limit(self, state):
        ...         return 2
        ...
        ...     def asks(self, state, depth, position):
        ...         return position % 2 == 0
        ...
        ...     def exits(self, state, depth, logits, hidden, position):
        ...         return True, float("nan")
        >>> output = generate(model, input_ids, policy=EveryOther(), heads=heads, max_new_tokens=8)
        >>> output.stats.drafted > 0
        True
    """

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        """Depths, ascending, at which a head may be asked.

        At depths without a head the logit lens reads the state. The number of blocks may be among them: the full model.

        Raises:
            HeadsError: the heads do not fit the policy.
        """
        return ()

    def check(self, heads: ExitHeads | None) -> None:
        """Refuse heads that the policy was not made for.

        Raises:
            HeadsError: they are not the ones.
        """

    def start(self, prompt: Int[Tensor, "1 position"], head_depths: Sequence[int]) -> Any:
        """State of one call."""
        return None

    def draft_limit(self, state: Any) -> int:
        """Maximum drafts in the coming round; 0 for none. Verified decoding only."""
        return 1

    def look_up(self, state: Any, prefix: Int[Tensor, "1 position"]) -> Sequence[int]:
        """Tokens drafted from the text alone, before any head is asked.

        If there are any, they are all drafts of the round. Verified decoding only.
        """
        return ()

    def asks(self, state: Any, depth: int, position: int) -> bool:
        """Whether to run the head at `depth` for the token after `position`."""
        return True

    def exits(
        self,
        state: Any,
        depth: int,
        logits: Float[Tensor, "1 classes"],
        hidden: Float[Tensor, "1 hidden"],
        position: int,
    ) -> tuple[bool, float]:
        """Whether to draft the token after `position` at `depth`, and the score.

        `logits` are the head's, before any logits processor. The score is NaN where none decided.
        """
        return False, float("nan")

    def observe(self, state: Any, outcome: Outcome) -> None:
        """Called after each round of verified decoding."""


@dataclass(frozen=True)
class Never(Policy):
    """Plain decoding: the full model decides every token.

    Example:
        >>> generate(model, input_ids, policy=Never(), max_new_tokens=8).stats.drafted
        0
    """


@dataclass(frozen=True)
class FixedExit(Policy):
    """Draft at one depth with one draft length, as LayerSkip does.

    See arXiv 2404.16710. Without heads the logit lens reads the state.

    Attributes:
        depth: of the head that drafts.
        draft_length: drafts per round.

    Example:
        >>> policy = FixedExit(depth=3, draft_length=2)
        >>> generate(model, input_ids, policy=policy, heads=heads, max_new_tokens=8).stats.drafted > 0
        True
    """

    depth: int
    draft_length: int

    def __post_init__(self):
        settle(self, depth=COUNT, draft_length=COUNT)

    def exit_depths(self, head_depths: Sequence[int]) -> tuple[int, ...]:
        if self.depth not in head_depths:
            raise HeadsError(f"FixedExit(depth={self.depth}): expected one of the heads' depths {list(head_depths)}.")
        return (self.depth,)

    def draft_limit(self, state):
        return self.draft_length

    def exits(self, state, depth, logits, hidden, position):
        return True, float("nan")


@dataclass
class _LookedUp:
    """State of `Lookup` in one call.

    Attributes:
        ngrams: of the text.
        limit: drafts in its next round.
        drafting: whether this round is one.
    """

    ngrams: NGrams
    limit: int
    drafting: bool = False


@dataclass(frozen=True)
class Lookup(Policy):
    """Prompt lookup decoding: draft what followed the last few tokens before.

    In the prompt or the answer (Saxena 2023; arXiv 2304.04487). It needs no head, and pays where a text repeats itself.

    Attributes:
        max_draft: maximum drafts in a round. Rounds begin with two and double while all are accepted.
        record: minimum share of right continuations, recent ones weighted more, for n-grams of a length to draft. The
            record is kept meanwhile, so that lookup resumes where it pays.
        sizes: lengths of the n-grams to look up.

    Example:
        >>> policy = Lookup(max_draft=4)
        >>> bool(verify_lossless(model, None, policy, [input_ids], max_new_tokens=8).equal.all())
        True
    """

    max_draft: int = 8
    record: float = 0.4
    sizes: tuple[int, ...] = (4, 3, 2)

    def __post_init__(self):
        settle(self, max_draft=COUNT, record=SHARE, sizes=lambda name, sizes: tuple(COUNT(name, n) for n in sizes))
        if not self.sizes:
            raise InvalidInputError("sizes=(): expected at least one n-gram length.")

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

    def observe(self, state, outcome):
        if state.drafting:
            all_right = outcome.accepted == outcome.drafted
            state.limit = min(2 * state.limit if all_right else max(outcome.accepted, 2), self.max_draft)


_BUDGET, _INCOME, _MOST = 30, 2, 200
"""Of a budget for drafting, in hundredths of a pass: what it begins with, gains a round, and holds at most."""


@dataclass
class _Rounds:
    """State of `Confidence` in one call.

    Attributes:
        thresholds: by depth.
        limit: drafts in the next round.
        budget: what drafting may still cost, in hundredths of a pass.
        misses: rounds in a row without an accepted draft.
        pause: rounds to sit out.
        lookup: state of its `lookup`.
    """

    thresholds: dict[int, float | None]
    limit: int
    budget: int = _BUDGET
    misses: int = 0
    pause: int = 0
    lookup: Any = None


@dataclass(frozen=True)
class Confidence(Policy):
    """Exit at the first confident head: DSSD, when verified.

    A head is confident when its score reaches its threshold. Without verification it is plain early exit.

    Attributes:
        metric: the score.
        thresholds: one per head, by ascending depth; None for a head that is never asked.
        max_draft: maximum drafts per round. A round ends sooner where no head is confident.
        depths: of the heads, if known, so that thresholds are not used at others.
        back_off: start with short rounds, double them while all drafts are accepted, and pause for 1, 3, 7, ... rounds
            after the second, third, fourth, ... in a row without an accepted draft, so that overconfident heads cost
            little. For heads that are hardly ever sure, or sure too late, there is a budget: it begins with 30% of a
            pass of the full model, gains a pass for each accepted draft and 2% for each round, loses the blocks below
            its exit for each draft and `price` for each head asked, and where it is spent no head is asked. If False,
            every round may draft `max_draft` tokens, as in the paper.
        price: of asking a head, the verification of what it drafts included, in passes of the full model.
        heads_fingerprint: of the calibrated heads, if known; others are refused.
        lookup: asked before the heads, which draft where its record is poor; None for none.

    Example:
        >>> policy = Confidence("max_prob", thresholds=(0.5, 0.4, None), max_draft=4)
        >>> output = generate(model, input_ids, policy=policy, heads=heads, max_new_tokens=8)
        >>> output.stats.emitted
        8
    """

    metric: str
    thresholds: tuple[float | None, ...]
    max_draft: int = 16
    depths: tuple[int, ...] | None = None
    back_off: bool = True
    heads_fingerprint: str | None = None
    lookup: Lookup | None = None
    price: float = 0.1

    def __post_init__(self):
        check_metric(self.metric)
        settle(self, thresholds=thresholds_or_none, max_draft=COUNT, back_off=flag, price=Number(least=0))

    @classmethod
    def from_calibration(
        cls,
        calibration: Calibration,
        max_draft: int = 16,
        back_off: bool = True,
        deepest: int | None = None,
        lookup: Lookup | None = None,
    ) -> "Confidence":
        """Policy from a calibration's metric and thresholds.

        Args:
            deepest: heads beyond this depth are not asked; None asks all.
        """
        thresholds = calibration.thresholds
        if deepest is not None:
            asked = zip(calibration.depths, thresholds, strict=True)
            thresholds = tuple(threshold if depth <= deepest else None for depth, threshold in asked)
        settings = calibration.metric, thresholds, max_draft, calibration.depths, back_off
        return cls(*settings, heads_fingerprint=calibration.heads_fingerprint, lookup=lookup)

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
                "expected one threshold (or None) per head."
            )
        if self.depths is not None and tuple(self.depths) != tuple(head_depths):
            raise HeadsError(
                f"Calibrated for depths {list(self.depths)}, used with heads at {list(head_depths)}: calibrate anew "
                "for these heads."
            )
        return tuple(d for d, t in zip(head_depths, self.thresholds, strict=True) if t is not None)

    def start(self, prompt, head_depths):
        thresholds = dict(zip(head_depths, self.thresholds, strict=True))
        looked_up = None if self.lookup is None else self.lookup.start(prompt, head_depths)
        return _Rounds(thresholds, limit=1 if self.back_off else self.max_draft, lookup=looked_up)

    def look_up(self, state, prefix):
        return () if self.lookup is None else self.lookup.look_up(state.lookup, prefix)

    def draft_limit(self, state):
        return 0 if state.pause or state.budget < 0 else state.limit

    def exits(self, state, depth, logits, hidden, position):
        score = confidence(logits, (self.metric,))[self.metric].item()
        return score >= state.thresholds[depth], score

    def observe(self, state, outcome):
        if self.lookup is not None and state.lookup.drafting:
            self.lookup.observe(state.lookup, outcome)
            return
        if not self.back_off:
            return
        drafted, accepted = outcome.drafted, outcome.accepted
        spent = int(100 * (outcome.passes + self.price * outcome.heads) + 0.5)
        state.budget = min(state.budget + 100 * accepted + _INCOME - spent, _MOST)
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
    """Attach a policy to heads, to be saved with them.

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
    """Policy that `keep_policy` attached to these heads.

    Raises:
        HeadsError: there is none, or the heads or their backbone have changed since.
    """
    record = heads.policy_record
    if not record:
        raise HeadsError(
            "These heads come without a policy: tune one, and attach it with `eelib.decoding.keep_policy`."
        )
    of = str(record.get("heads_fingerprint"))
    if of != heads.fingerprint():
        raise HeadsError(
            f"The policy was tuned for the heads {of[:12]} (fingerprint), and these are "
            f"{heads.fingerprint()[:12]}: they or their backbone have changed. Tune again."
        )
    try:
        settings = dict(record["settings"])
        if settings.get("lookup") is not None:
            settings["lookup"] = Lookup(**settings["lookup"])
        if settings.get("depths") is not None:
            settings["depths"] = tuple(settings["depths"])
        return {kind.__name__: kind for kind in _SAVED}[record["policy"]](**settings)
    except (TypeError, ValueError, LookupError) as error:
        raise HeadsError(f"The policy beside these heads is none of this version: {error!r}. Tune again.") from error


def thresholds_or_none(name: str, values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Thresholds as a tuple of numbers, possibly infinite, or None."""
    return tuple(Number(infinite=True, optional=True)(name, value) for value in values)
