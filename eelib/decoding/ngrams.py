"""N-gram lookup: free drafts, from earlier occurrences of the last few tokens."""

from collections.abc import Iterable, Sequence

_NEWEST = 0.15
"""Weight of the newest outcome in a record."""


class NGrams:
    """Latest occurrence of each n-gram, and how predictive they were.

    Args:
        sizes: lengths of n-grams, longest first; the longest one with an earlier occurrence is used.

    Attributes:
        records: for each size the share of continuations that were right, recent ones weighted more; initially 0.5.
    """

    def __init__(self, sizes: Sequence[int] = (4, 3, 2)):
        self.sizes = tuple(sorted(sizes, reverse=True))
        self.text: list[int] = []
        self.records = dict.fromkeys(self.sizes, 0.5)
        self._after: dict[tuple[int, ...], int] = {}  # the place behind the last occurrence of each run

    def extend(self, tokens: Iterable[int], judged: bool = True) -> None:
        """Append tokens; `judged` ones count in the records."""
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
        """Size of the n-gram found, and the `length` tokens that followed it.

        Past the end of the text they go round. (0, []) where no n-gram occurred before.
        """
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
