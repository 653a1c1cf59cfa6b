"""
Read strategies from one line of text: `best_of_n,pessimism:beta=0.05,pessimism:beta=0.2,normalize=zscore`.
"""

from __future__ import annotations

import json
from typing import Any

from hf_itp.errors import ArgumentError
from hf_itp.evaluation.tables import RewardTable
from hf_itp.strategies import Strategy, get_strategy

ALL = "all"


def parse_strategies(text: str, table: RewardTable | None = None) -> list[Strategy]:
    """
    Return the strategies that a line names, in order, each once.

    Strategies are separated by commas. Settings follow a colon, `name=value` with values read as JSON if they are; a
    part without a name of its own belongs to the strategy before it. `all` stands for [`grid`].

    Args:
        text (`str`): The line.
        table ([`RewardTable`], *optional*): The pool, whose scale `all` needs.

    Raises:
        `ArgumentError`: If a part cannot be read, or a strategy refuses its settings.

    Examples:

    ```python
    >>> [strategy.settings() for strategy in parse_strategies("best_of_n,top_quantile:multiplier=4")]
    [{}, {'multiplier': 4}]

    ```
    """
    wanted: list[tuple[str, dict[str, Any]]] = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, colon, settings = part.partition(":")
        if not colon and "=" in part:
            name, settings = "", part
        if name:
            wanted.append((name.strip(), {}))
        if not wanted or ("=" not in settings and (colon or not name)):
            raise ArgumentError(
                f"`strategies` must be names with settings as name=value, got {part!r} in {text!r:.80}. Pass e.g. "
                "best_of_n,pessimism:beta=0.1."
            )
        if settings:
            key, _, value = settings.partition("=")
            wanted[-1][1][key.strip().replace("-", "_")] = _value(value.strip())
    if not wanted:
        raise ArgumentError("`strategies` must name at least one, got ''. Pass e.g. best_of_n,pessimism.")
    found: list[Strategy] = []
    for name, fields in wanted:
        if name == ALL and fields:
            raise ArgumentError(f"`strategies` must give {ALL!r} no settings, got {fields}. Name the strategy.")
        found += grid(table) if name == ALL else [get_strategy(name, **fields)]
    return [strategy for place, strategy in enumerate(found) if strategy not in found[:place]]


def grid(table: RewardTable | None = None) -> list[Strategy]:
    """
    Return a sensible grid of what can serve: every strategy of the package but the attacker's.

    Temperatures and betas that are in units of reward are multiples of the median spread of the pools.
    """
    scale = 1.0 if table is None else table.spread
    return [
        get_strategy("best_of_n"),
        *(get_strategy("pessimism", beta=beta, normalize="zscore") for beta in (0.05, 0.1, 0.2, 0.5, 1)),
        *(get_strategy("pessimism", beta=_rounded(beta * scale)) for beta in (0.1, 0.3, 1)),
        *(get_strategy("top_quantile", multiplier=multiplier) for multiplier in (2, 4, 8, 16)),
        *(get_strategy("best_of_poisson", rate=rate) for rate in (2, 4, 8, 16)),
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
