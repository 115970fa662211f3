"""Steps: what decoding asks of the model, one request at a time.

A method marked `stepwise` is a generator: it yields a request (run a segment, ask a head, unembed) and is sent the
result. Called as usual, it serves its own requests, so one text decodes alone. A batch takes the generators of many
texts, and serves equal requests in one call.
"""

import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from eelib.decoding.frontier import Frontier
    from eelib.heads.exit_heads import ExitHeads

Steps = Generator
"""A generator that yields requests, is sent their results, and returns the method's own result."""


@dataclass(frozen=True, eq=False, slots=True)
class Advance:
    """Run a segment on all positions that wait at its entrance.

    Attributes:
        frontier: whose.
        segment: its number.
    """

    frontier: "Frontier"
    segment: int

    def __call__(self) -> Tensor:
        """States behind the segment, [1, position, hidden]."""
        return self.frontier.advance(self.segment)


@dataclass(frozen=True, eq=False, slots=True)
class Ask:
    """Ask a head.

    Attributes:
        heads: the heads.
        depth: of the one to ask.
        hidden: state to read, [1, hidden].
        previous: for heads that read it (`ExitHeads.final`), [1, width].
    """

    heads: "ExitHeads"
    depth: int
    hidden: Tensor
    previous: Tensor | None

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The unembedding's predicted input [1, width], and logits [1, classes]."""
        final = self.heads.final(self.depth, self.hidden, self.previous)
        return final, self.heads.read(self.depth, final)


@dataclass(frozen=True, eq=False, slots=True)
class Unembed:
    """Unembed states that have passed all blocks.

    Attributes:
        frontier: whose.
        hidden: the states, [1, position, hidden].
    """

    frontier: "Frontier"
    hidden: Tensor

    def __call__(self) -> Tensor:
        """The full model's logits, [1, position, vocab]."""
        return self.frontier.unembed(self.hidden)


Request = Advance | Ask | Unembed


def stepwise(method: Callable[..., Steps]) -> Callable[..., Any]:
    """Method from a generator of requests; when called, it serves them itself."""

    @functools.wraps(method)
    def alone(*args: Any) -> Any:
        steps, result = method(*args), None
        while True:
            try:
                request = steps.send(result)
            except StopIteration as end:
                return end.value
            result = request()

    alone.steps = method
    return alone


def steps(owner: object, name: str, *args: Any) -> Steps:
    """The steps of a method.

    One that is not `stepwise` runs at once, without any. So a subclass may override it by a method that calls the
    model itself, or by a stepwise one.
    """
    method = getattr(owner, name)
    of_method = getattr(method, "steps", None)
    if of_method is None:
        return method(*args)
    return (yield from of_method(owner, *args))
