"""Validation of settings: convert and check them before any long work.

Accepts what people write: numpy scalars, `1e3`, `2e-3` as YAML reads it, "false".
"""

import math
import numbers
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from eelib.errors import InvalidInputError


@dataclass(frozen=True)
class Number:
    """Validator of a numeric setting: `check(name, value)` returns an int or float.

    Attributes:
        least, most: inclusive bounds.
        above, below: exclusive bounds.
        whole: integers only.
        optional: accept None.
        infinite: accept infinity.

    Raises:
        InvalidInputError: the value is not such a number.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    optional: bool = False
    infinite: bool = False

    def __call__(self, name: str, value: Any) -> int | float | None:
        if value is None and self.optional:
            return None
        found = _number(value)
        if found is None or not self._allows(found):
            raise InvalidInputError(f"{name}={value!r}: expected {self}.")
        return int(found) if self.whole else float(found)

    def _allows(self, number: float) -> bool:
        return (
            (math.isfinite(number) or (self.infinite and not math.isnan(number)))
            and (not self.whole or (number == int(number) and -(2**63) <= number < 2**63))  # what a tensor can hold
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        number = "whole number" if self.whole else "number"
        if self.above == 0 or (self.whole and self.least == 1):
            number = f"positive {number}"
        elif self.least is not None or self.above is not None:
            number += f" from {self.least} on" if self.above is None else f" above {self.above}"
        if self.most is not None or self.below is not None:
            number = number.removesuffix(" on")
            number += f" to {self.most}" if self.below is None else f" to below {self.below}"
        return f"a {number}" + (", or None" if self.optional else "")


COUNT = Number(least=1, whole=True)
"""A whole number from 1 on."""
POSITIVE = Number(above=0)
"""A number above 0."""
SEED = Number(least=0, whole=True)
"""A whole number from 0 on."""
SHARE = Number(least=0, most=1)
"""A number from 0 to 1."""


def flag(name: str, value: Any) -> bool:
    """Boolean, from a bool or the words "true" and "false"."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InvalidInputError(f"{name}={value!r}: expected True or False.")


def check_known(what: str, value: Any, known: Collection[str]) -> str:
    """The value, if it is one of the known names.

    Raises:
        InvalidInputError: it is not; the message lists them all.
    """
    if not isinstance(value, str) or value not in known:
        raise InvalidInputError(f"Unknown {what} {value!r}: expected one of {', '.join(known)}.")
    return value


def settle(config: object, **checks: Callable[[str, Any], Any]) -> None:
    """Validate and convert fields of a frozen dataclass, from its `__post_init__`.

    Raises:
        InvalidInputError: the first invalid field, and what was expected.
    """
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def _number(value: Any) -> float | None:
    """The number that a value represents, or None. A bool is none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, numbers.Real) else None
