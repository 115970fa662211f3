"""Gathering: which rows of a batch share a call.

Rows wait at places: before block 0, or at an exit, before the first block above it. A rule says which place runs next,
with all rows that wait there, and whether tokens that have exited there ride along. It changes when a row is served,
never what it says.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eelib.errors import InvalidInputError
from eelib.settings import COUNT, SHARE, Number, settle


class Gathering(ABC):
    """Base class of gathering rules.

    Subclass it to gather in another way; `eelib.generate(..., gather=YourRule())`.
    """

    @abstractmethod
    def choose(self, waits: Mapping[int, Sequence[int]], rows: int) -> int:
        """Place to run next.

        Args:
            waits: for each place where rows wait, how many calls each of them has waited.
            rows: in flight.
        """

    def carries(self, staying: int, leaving: int) -> bool:
        """Whether tokens that have exited ride along with those that go on.

        Args:
            staying: rows that go on.
            leaving: rows with tokens that wait there, to be filled in later.
        """
        return False


@dataclass(frozen=True)
class All(Gathering):
    """Everyone leaves at the same exit: the textbook's batch.

    No token begins before the slowest row's is settled, and the others pass the blocks above their exit meanwhile.
    """

    def choose(self, waits, rows):
        return max(waits)

    def carries(self, staying, leaving):
        return True


@dataclass(frozen=True)
class Each(Gathering):
    """Who has waited longest is served, with all at its place."""

    def choose(self, waits, rows):
        return max(waits, key=lambda place: (max(waits[place]), place))


@dataclass(frozen=True)
class Wait(Gathering):
    """A place runs once enough rows wait there, or one has long.

    Where neither holds, the fullest place runs.

    Attributes:
        share: of the rows in flight, from which on a place runs.
        patience: calls after which a row waits no longer.
    """

    share: float = 0.5
    patience: int = 8

    def __post_init__(self):
        settle(self, share=SHARE, patience=Number(least=0, whole=True))

    def choose(self, waits, rows):
        impatient = [place for place in waits if max(waits[place]) >= self.patience]
        ready = impatient or [place for place in waits if len(waits[place]) >= self.share * rows] or list(waits)
        return max(ready, key=lambda place: (len(waits[place]), place))


@dataclass(frozen=True)
class DREX(Gathering):
    """Dynamic rebatching (arXiv 2512.15705): rows that go on are held at exits.

    Until a batch of them has gathered. Meanwhile those who left go on with their next tokens, from the first block.
    Where fewer than `threshold` leave, the batch is not split: all go on together. DREX copies states upward for
    missing keys and values, and derives its threshold from profiles; here keys and values are computed when they are
    due, as under every rule.

    Attributes:
        threshold: least number of rows that leave for a batch to be split.
        buffer: share of the rows in flight that are held before they run.
        patience: calls after which a row is held no longer.
    """

    threshold: int = 2
    buffer: float = 0.5
    patience: int = 8

    def __post_init__(self):
        settle(self, threshold=COUNT, buffer=SHARE, patience=Number(least=0, whole=True))

    def choose(self, waits, rows):
        held = [place for place in waits if place]
        due = [p for p in held if len(waits[p]) >= self.buffer * rows or max(waits[p]) >= self.patience]
        unsplit = [p for p in held if 0 in waits and len(waits[0]) < self.threshold]
        return max(due or unsplit, default=min(waits))

    def carries(self, staying, leaving):
        return leaving < self.threshold


GATHERINGS = {"all": All(), "wait": Wait(), "each": Each(), "drex": DREX()}
"""Rules by name, with their default settings."""


def gathering_of(rule: str | Gathering) -> Gathering:
    """A rule, from its name or itself.

    Raises:
        InvalidInputError: neither.
    """
    if isinstance(rule, Gathering):
        return rule
    if not isinstance(rule, str) or rule not in GATHERINGS:
        raise InvalidInputError(
            f"gather={rule!r}: expected one of {', '.join(map(repr, GATHERINGS))}, or a Gathering of your own."
        )
    return GATHERINGS[rule]
