"""
What was found out about a model by running it, kept as long as the model lives.

A model that is run in a way of ours has to agree with its own pass. Finding out takes a pass, so it is done once.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

_V = TypeVar("_V")


class Verdicts(Generic[_V]):
    """
    A memory of one verdict per model and question, safe to share between threads.

    Only verdicts belong here: a pass that failed for another reason (memory, a NaN) leaves the question open.

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
        """Return the verdict, `None` where the question is open."""
        with self._lock:
            return self._found.get(model, {}).get(question)

    def remember(self, model: Any, verdict: _V, question: Hashable = None) -> _V:
        """Keep a verdict in place of any before it, and return it."""
        with self._lock:
            self._found.setdefault(model, {})[question] = verdict
        return verdict
