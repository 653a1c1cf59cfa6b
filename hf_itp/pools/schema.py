"""
The columns of a pool's rows, checked where a row is read: one prompt a row, lists with one entry per response.

`rewards` or `rewards.NAME` hold rewards, `gold_rewards` what is to be achieved, and `null` is no reward. A pool of
rewards alone needs no `prompt` and no `responses`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_itp.errors import ArgumentError

Row = dict[str, Any]
"""One prompt of a pool."""

REWARDS = "rewards"
GOLD = "gold_rewards"


def reward_column(row: Mapping[str, Any], name: str | None) -> str:
    """
    Return the column that holds the rewards called `name`; by default the only one there is.

    Raises:
        `ArgumentError`: If there is none of that name, or several and no name.
    """
    columns = [column for column in row if column == REWARDS or column.startswith(f"{REWARDS}.")]
    if name is not None:
        wanted = name if name in row else f"{REWARDS}.{name}"
        if wanted in row:
            return wanted
        raise ArgumentError(f"`rewards` must name a column of the pool, got {name!r}. It has {_listed(columns)}.")
    if REWARDS in columns or len(columns) == 1:
        return REWARDS if REWARDS in columns else columns[0]
    raise ArgumentError(
        f"`rewards` must name one of the pool's columns of rewards, got None. It has {_listed(columns)}."
    )


def numbers(row: Mapping[str, Any], column: str, where: str) -> list[float | None]:
    """
    Return a column of numbers, one per response, `None` where there is none.

    Args:
        row (`Mapping`): The row.
        column (`str`): Its column.
        where (`str`): The row's place, for errors: "line 3 of pool.jsonl".

    Raises:
        `ArgumentError`: If the column is missing or empty, holds something else than finite numbers and `None`, or is
            longer or shorter than `responses`.
    """
    values = row.get(column)
    if not isinstance(values, (list, tuple)) or not values:
        raise ArgumentError(
            f"`{column}` must be a list with a number per response, got {values!r:.80} in {where}. Complete or remove "
            "the row."
        )
    responses = row.get("responses")
    if responses is not None and len(responses) != len(values):
        raise ArgumentError(
            f"`{column}` must have one entry per response, got {len(values)} for {len(responses)} in {where}. "
            "Complete or remove the row."
        )
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ArgumentError(
                f"`{column}` must hold finite numbers, or null for no reward, got {value!r:.40} in {where}. Correct "
                "or remove the row."
            )
    return [None if value is None else float(value) for value in values]


def fewest_rewards(rows: Sequence[Row]) -> int:
    """Return the number of rewards of the row that has fewest."""
    return min(sum(reward is not None for reward in row[REWARDS]) for row in rows)


def _listed(columns: list[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns) if columns else "no column of rewards"
