"""What pytest checks at every call: the arrays in annotations, their shapes and types.

Nothing else in them: what a wrong argument of another kind leads to is the library's own to say, and to be tested.
"""

from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function):
    """`function`, its annotations without arrays dropped, checked by beartype."""
    if not isinstance(function, type):
        hints = getattr(function, "__annotations__", {})
        function.__annotations__ = {name: hint for name, hint in hints.items() if _has_array(hint)}
        return beartype(function) if function.__annotations__ else function
    return function


def _has_array(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_array(argument) for argument in get_args(hint))
