"""
Columns of a data set besides its prompts: one entry per prompt, passed to the reward with each response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_itp.errors import ArgumentError
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards import RewardFunction
from hf_itp.rewards.base import Prompt, check_names

Columns = dict[str, list[Any]]

# Columns that no reward gets: the prompt's own, and those that TRL takes for pictures and responses.
_NOT_FOR_REWARDS = ("prompt", "completion", "completion_ids", "image", "images")


def reward_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """
    Return the columns besides the prompts, as TRL passes them to reward functions. A column that only some rows have
    (those of a second data set) is `None` in the others.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_FOR_REWARDS)
    return {name: [row.get(name) for row in rows] for name in names}


def check_columns(columns: Mapping[str, Sequence[Any]] | None, num_prompts: int) -> Columns:
    """
    Return the columns as lists.

    Raises:
        `ArgumentError`: If a column has another number of entries than one per prompt, or a name that is taken.
    """
    checked: Columns = {}
    check_names(columns or {})
    for name, column in (columns or {}).items():
        if isinstance(column, (str, bytes)) or not hasattr(column, "__len__") or len(column) != num_prompts:
            raise ArgumentError(
                f"`reward_kwargs` must hold a list with one entry per prompt ({num_prompts}) for each name, got "
                f"{column!r:.80} for {name!r}. Repeat a value that is the same for all prompts."
            )
        checked[name] = list(column)
    return checked


def distinct_prompts(
    prompts: Sequence[Prompt], columns: Columns, reward: RewardFunction
) -> tuple[list[Prompt], Columns]:
    """
    Return each prompt once, with its columns.

    Raises:
        `ArgumentError`: If there are no prompts, or equal ones differ in a column the reward takes: it would give them
            different rewards, and a prompt has one row of references.
    """
    if not prompts:
        raise ArgumentError("`prompts` must hold at least one prompt, got none. Pass those of the training.")
    first: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        same = first.setdefault(prompt_fingerprint(prompt), place)
        for name, column in columns.items():
            if not _equal(column[same], column[place]) and reward.takes(name):
                raise ArgumentError(
                    f"`{name}` must be the same wherever a prompt is, got {column[same]!r:.60} for prompt {same} and "
                    f"{column[place]!r:.60} for prompt {place}, which is equal ({prompt!r:.60}): a prompt has one set "
                    "of reference rewards. Make the prompts differ, or leave the column out."
                )
    places = list(first.values())
    return [prompts[place] for place in places], {
        name: [column[place] for place in places] for name, column in columns.items()
    }


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False  # arrays and the like are equal only as the same object
