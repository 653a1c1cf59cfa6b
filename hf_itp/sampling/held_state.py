"""
Look at what a caller's processor or criterion holds from call to call, and copy it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase


def held(thing: Any) -> Iterator[Any]:
    """Yield what an object or function holds from call to call: attributes, bound arguments, closed-over variables."""
    if isinstance(thing, functools.partial):
        yield from (thing.args, thing.keywords.values())
        yield from held(thing.func)
    elif inspect.ismethod(thing):
        yield from held(thing.__self__)
    elif inspect.isfunction(thing):
        for cell in thing.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for name in (name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())):
            if hasattr(thing, name):
                yield getattr(thing, name)


def holds_one_per(thing: Any, count: int) -> bool:
    """Return whether something it holds has `count` entries, a sign that it was made for that many rows."""
    for value in held(thing):
        parts = [value]
        if isinstance(value, dict):
            if list(value) == list(range(count)):
                return True
            parts = list(value.values())
        for part in parts:
            if isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0 and part.shape[0] == count:
                return True
            if isinstance(part, (list, tuple)) and len(part) == count:
                return True
    return False


def copied(thing: Any) -> Any:
    """Return a copy that shares the models and tokenizers in it, or `None` if something in it cannot be copied."""
    memo = {id(part): part for part in _heavy(thing, depth=3)}
    try:
        return copy.deepcopy(thing, memo)
    except Exception:  # whatever a lock, a file or a compiled grammar raises
        return None


def _heavy(thing: Any, depth: int) -> Iterator[Any]:
    if isinstance(thing, (nn.Module, PreTrainedTokenizerBase)):
        yield thing
        return
    if depth == 0:
        return
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else held(thing)
    for part in parts:
        yield from _heavy(part, depth - 1)


def name_of(thing: Any) -> str:
    """Return in backticks the name of a function, or of an object's class."""
    return f"`{getattr(thing, '__qualname__', type(thing).__name__)}`"
