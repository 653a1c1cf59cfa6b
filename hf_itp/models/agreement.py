"""
Remember per model whether another way of running it agrees with its own forward pass.

Finding out takes a forward pass, so it is done once per model.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

_V = TypeVar("_V")


class Verdicts(Generic[_V]):
    """
    Memory of one verdict per model and question. Safe to share between threads; keeps no model alive.

    Store only verdicts: a pass that failed for another reason (out of memory, a NaN) leaves the question open.

    Examples:

    ```python
    >>> from torch import nn
    >>> verdicts, model = Verdicts[bool](), nn.Identity()
    >>> verdicts.recall(model, "float32")
    >>> verdicts.remember(model, True, "float32")
    True
    >>> verdicts.recall(model, "float32"), verdicts.recall(model, "bfloat16")
    (True, None)

    ```
    """

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Any, dict[Hashable, _V]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def recall(self, model: Any, question: Hashable = None) -> _V | None:
        """Return the verdict, or `None` if there is none yet."""
        with self._lock:
            return self._found.get(model, {}).get(question)

    def remember(self, model: Any, verdict: _V, question: Hashable = None) -> _V:
        """Store a verdict in place of any earlier one, and return it."""
        with self._lock:
            self._found.setdefault(model, {})[question] = verdict
        return verdict
