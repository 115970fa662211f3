"""Stateful logits processors and stopping criteria, copied for drafts.

Transformers calls each once per token, in order, and some rely on it (a grammar's matcher advances with every call).
Drafts may be rejected, so calls about them must not touch the state for final tokens.
"""

import copy
import types
from collections.abc import Iterable

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from eelib.errors import UnsupportedError

_SHARED = (torch.nn.Module, PreTrainedTokenizerBase, PreTrainedConfig, types.ModuleType)
"""Types that are shared, since they are large and stateless."""


def branch(rules: Iterable) -> list:
    """Copies of processors or criteria, for a tentative branch.

    Transformers' own, which read only the prefix, are shared; other rules are copied, without their models and
    tokenizers.

    Raises:
        UnsupportedError: one cannot be copied.
    """
    return [_branch(rule) for rule in rules]


def _branch(rule: object) -> object:
    if type(rule).__module__.partition(".")[0] == "transformers":
        own = {name: value for name, value in vars(rule).items() if isinstance(value, types.FunctionType)}
        if not own:
            return rule
        copied = copy.copy(rule)  # a function of the user's inside, as `prefix_allowed_tokens_fn` is
        vars(copied).update({name: _copied(value) for name, value in own.items()})
        return copied
    return _copied(rule)


def _copied(rule: object) -> object:
    try:
        return _function(rule) if isinstance(rule, types.FunctionType) else copy.deepcopy(rule, _memo(rule))
    except Exception as error:  # whatever a class of somebody else's raises when it is copied
        raise UnsupportedError(
            f"{type(rule).__name__} cannot be copied ({type(error).__name__}: {error}), so drafts would change its "
            "state: give it a __deepcopy__, or decode with eelib.Never()."
        ) from error


def _function(function: types.FunctionType) -> types.FunctionType:
    """Copy of a function with its closure, since `deepcopy` shares functions."""
    if function.__closure__ is None:
        return function
    values = [cell.cell_contents for cell in function.__closure__]
    copies = [
        _function(value) if isinstance(value, types.FunctionType) and value is not function
        else copy.deepcopy(value, _memo(value))
        for value in values
    ]  # fmt: skip
    cells = tuple(map(types.CellType, copies))
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _memo(of: object) -> dict:
    """What `deepcopy` should share: `of` itself, or what it holds."""
    held = [of, getattr(of, "__self__", None), *getattr(of, "__dict__", {}).values()]
    return {id(value): value for value in held if isinstance(value, _SHARED)}
