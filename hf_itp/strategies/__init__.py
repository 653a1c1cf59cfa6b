"""
Selection strategies: one published rule per file, found by name through the registry.
"""

from typing import Any

from hf_itp.strategies.base import Strategy
from hf_itp.strategies.registry import OURS, get_strategy, list_strategies, register

_CLASSES = {entry.attr: entry for entry in OURS.values()}

__all__ = ["Strategy", "get_strategy", "list_strategies", "register", *_CLASSES]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'hf_itp.strategies' has no attribute {name!r}")
    return _CLASSES[name].load()


def __dir__() -> list[str]:
    return sorted(__all__)
