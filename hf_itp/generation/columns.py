"""
Check the columns of data that a caller of `generate` gives for the reward: `reward_kwargs={"solution": [...]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_itp.checks import as_list
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.rewards.base import check_names

_REMEDY = 'Pass reward_kwargs={"solution": [...]}, one entry per input row.'


def check_reward_kwargs(columns: Mapping[str, Any], num_rows: int | None = None) -> dict[str, list]:
    """
    Return the columns as lists; refuse the names of arguments that every reward is called with.

    Args:
        columns (`dict`): Columns the caller gave, by name.
        num_rows (`int`, *optional*): Number of entries each must have. By default not checked.

    Raises:
        `ArgumentTypeError`: If it is not a dict of lists by name.
        `ArgumentError`: If a name is taken, or a column does not have one entry per row.
    """
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
        raise ArgumentTypeError(f"`reward_kwargs` must be a dict of columns by name, got {columns!r:.80}. {_REMEDY}")
    check_names(columns)
    checked: dict[str, list] = {}
    for name, column in columns.items():
        entries = as_list(column)
        if entries is None:
            raise ArgumentTypeError(
                f"Column {name!r} of `reward_kwargs` must be a list, got {column!r:.80}. {_REMEDY} Repeat a value "
                "that is the same for all rows."
            )
        if num_rows is not None and len(entries) != num_rows:
            raise ArgumentError(
                f"Column {name!r} of `reward_kwargs` must have one entry per input row ({num_rows}), got "
                f"{len(entries)}. {_REMEDY}"
            )
        checked[name] = entries
    return checked
