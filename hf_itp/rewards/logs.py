"""
What reward functions log: numbers by `log_metric(name, value)`, and one value per response by `log_extra`.

TRL's trainers pass both to every reward function and log them themselves. Elsewhere they are kept here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hf_itp.arrays import as_number
from hf_itp.checks import as_list, must_be
from hf_itp.errors import ArgumentError, NumberError

Pair = tuple[int, int]
"""A prompt and one of its candidates, both as numbers."""


class RewardLog:
    """
    Log of the rewards of one call of `generate`.

    Examples:

    ```python
    >>> log = RewardLog()
    >>> loggers = log.loggers([(0, 0), (0, 1), (1, 0)])
    >>> loggers["log_metric"]("share_parsed", 0.5)
    >>> loggers["log_extra"]("verdict", ["right", "wrong", "right"])
    >>> log.values([2, 1])
    {'metrics': {'share_parsed': 0.5}, 'extra': {'verdict': [['right', 'wrong'], ['right']]}}

    ```
    """

    def __init__(self) -> None:
        self.metrics: defaultdict[str, list[float]] = defaultdict(list)
        self.extra: defaultdict[str, dict[Pair, Any]] = defaultdict(dict)

    def loggers(self, pairs: Sequence[Pair]) -> dict[str, Callable[..., None]]:
        """Return what a reward is passed to log with while it scores these candidates."""
        return {"log_metric": self._log_metric, "log_extra": partial(self._log_extra, pairs)}

    def update(self, other: RewardLog) -> None:
        """Add what another process has logged."""
        for name, numbers in other.metrics.items():
            self.metrics[name] += numbers
        for column, entries in other.extra.items():
            self.extra[column].update(entries)

    def values(self, sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
        """
        Return `metrics`, each averaged over its numbers without NaN, as TRL does, and `extra`: per column a list per
        prompt with an entry per candidate, `None` where nothing was logged.

        Args:
            sizes (`list[int]`): How many candidates each prompt has.
        """
        return {
            "metrics": {name: _mean(numbers) for name, numbers in self.metrics.items()},
            "extra": {
                column: [[entries.get((row, index)) for index in range(size)] for row, size in enumerate(sizes)]
                for column, entries in self.extra.items()
            },
        }

    def _log_metric(self, name: str, value: float) -> None:
        number = as_number(value)
        if number is None:
            raise NumberError(must_be(f"log_metric({name!r}, ...)", "given a number", value, "Log one per call."))
        self.metrics[name].append(float(number))

    def _log_extra(self, pairs: Sequence[Pair], column: str, values: Sequence[Any]) -> None:
        entries = as_list(values)
        if entries is None or len(entries) != len(pairs):
            raise ArgumentError(
                f"`log_extra` must get a list with one value per completion ({len(pairs)}) for {column!r}, got "
                f"{values!r:.80}. Log each completion's value, in order."
            )
        self.extra[column].update(zip(pairs, entries, strict=True))


def _mean(numbers: Sequence[float]) -> float:
    known = [number for number in numbers if not math.isnan(number)]
    return sum(known) / len(known) if known else math.nan


def _drop(*logged: Any) -> None:
    """Keep nothing."""


DROPPED: dict[str, Callable[..., None]] = {"log_metric": _drop, "log_extra": _drop}
"""Loggers for rewards of references, which belong to no step of a training."""
