"""What pytest checks at every call: the arrays in annotations, their shapes and types.

Nothing else in them: what a wrong argument of another kind leads to is the library's own to say, and to be tested.
"""

import dataclasses
import functools
import inspect
import typing

import jaxtyping
from beartype import beartype

_context = jaxtyping.jaxtyped


def check(package: str) -> None:
    """Checks the package's functions and dataclasses from now on, as its modules are imported.

    Their decorator is ours in place of jaxtyping's, which binds the arguments of every call, arrays or not, and checks
    them twice: half of the time that decoding a tiny model takes.
    """
    jaxtyping.jaxtyped = lambda *, typechecker: checked
    jaxtyping.install_import_hook(package, None)


def checked(function):
    """`function`, the arrays of each call checked by beartype against one set of sizes; itself where there are none."""
    if isinstance(function, type):
        if dataclasses.is_dataclass(function):
            function.__init__ = checked(function.__init__)
        return function
    arrays = {name: hint for name, hint in getattr(function, "__annotations__", {}).items() if _has_array(hint)}
    if not arrays or inspect.isgeneratorfunction(function):  # a generator's arguments are read when it runs
        return function
    everything, function.__annotations__ = function.__annotations__, arrays
    checking = beartype(function)
    function.__annotations__ = everything

    @functools.wraps(function)
    def call(*args, **kwargs):
        with _context("context"):
            return checking(*args, **kwargs)

    return call


def _has_array(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_array(argument) for argument in typing.get_args(hint))
