"""Drafts that cost nothing: what followed the last few tokens where they stood before in the text."""

from collections.abc import Iterable, Sequence

_NEWEST = 0.15
"""What the newest outcome weighs in a record."""


class NGrams:
    """Where each run of a few tokens was last seen in a text, and how often what followed there came again.

    Args:
        sizes: lengths of the runs, the longest first; the longest one that was seen before is believed.

    records: for each size the share of the times that the next token was the one that followed there, the newer the
        more it weighs; 0.5 before anything is known.
    """

    def __init__(self, sizes: Sequence[int] = (4, 3, 2)):
        self.sizes = tuple(sorted(sizes, reverse=True))
        self.text: list[int] = []
        self.records = dict.fromkeys(self.sizes, 0.5)
        self._after: dict[tuple[int, ...], int] = {}  # the place behind the last occurrence of each run

    def extend(self, tokens: Iterable[int], judged: bool = True) -> None:
        """Appends tokens; `judged` ones count in the records."""
        text = self.text
        for token in tokens:
            size, place = self._last_seen()
            if judged and size:
                self.records[size] += _NEWEST * ((text[place] == token) - self.records[size])
            for n in self.sizes:
                if len(text) >= n:
                    self._after[tuple(text[-n:])] = len(text)
            text.append(token)

    def continuation(self, length: int) -> tuple[int, list[int]]:
        """The size of the run at the end of the text that was seen before, and `length` tokens as they went on there;
        where that reaches the end of the text, it goes round. (0, []) where no run was seen before."""
        size, place = self._last_seen()
        if not size:
            return 0, []
        period = len(self.text) - place
        return size, [self.text[place + i % period] for i in range(length)]

    def _last_seen(self) -> tuple[int, int]:
        for n in self.sizes:
            place = self._after.get(tuple(self.text[-n:])) if len(self.text) >= n else None
            if place is not None:
                return n, place
        return 0, 0
