"""
Rewards as numbers: finite, except where a response has none.

A caller's `None` becomes NaN here, and nowhere else. Past this point NaN means "no reward".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hf_itp.errors import RewardError

_REMEDY = "Return a finite float for every response, or None where it has no reward."


def as_rewards(values: Any, count: int, name: str) -> torch.Tensor:
    """
    Return what a reward function returned as float32 on the CPU, one per response, NaN where it returned `None`.

    Args:
        values: Numbers and `None`, or a tensor or array of numbers.
        count (`int`): How many responses were scored.
        name (`str`): The reward's name, for the messages.

    Raises:
        `RewardError`: If there is not one finite number or `None` per response. NaN is an error that names the
            response: a function that divides by zero does not mean "no reward".

    Examples:

    ```python
    >>> as_rewards([0.5, None], 2, "verifier")
    tensor([0.5000,    nan])

    ```
    """
    absent = None
    if isinstance(values, Sequence) or getattr(getattr(values, "dtype", None), "kind", "") == "O":
        values = list(values)
        absent = torch.tensor([value is None for value in values], dtype=torch.bool)
        # In Python's own precision, not in torch's default dtype.
        values = torch.tensor(_numbers(values, name), dtype=torch.float64)
    try:
        rewards = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"Reward function `{name}` must return floats, got a {type(values).__name__}. Return one "
            "float per response, in order."
        ) from None
    if rewards.dim() == 1 and len(rewards) != count:
        raise RewardError(
            f"Reward function `{name}` must return one reward per response ({count}), got {len(rewards)}. Return one "
            "float per response, in order."
        )
    if rewards.shape != (count,) or rewards.is_complex():
        raise RewardError(
            f"Reward function `{name}` must return real rewards of shape ({count},), got shape "
            f"{tuple(rewards.shape)} and dtype {rewards.dtype}. Return one float per response, in order."
        )
    rewards = rewards.to(device="cpu", dtype=torch.float32)
    if not torch.isfinite(rewards).all():
        position = int((~torch.isfinite(rewards)).nonzero()[0])
        raise RewardError(
            f"Reward function `{name}` must return finite rewards, got {rewards[position].item()} for response "
            f"{position} of {count}, so no candidate can be ranked. {_REMEDY}"
        )
    return rewards if absent is None else rewards.masked_fill(absent, math.nan)


def or_none(rewards: torch.Tensor) -> list[float | None]:
    """
    Return rewards `(n,)` as numbers, with `None` for "no reward", as [`as_rewards`] reads them.

    Examples:

    ```python
    >>> or_none(torch.tensor([0.5, float("nan")]))
    [0.5, None]

    ```
    """
    return [None if math.isnan(reward) else reward for reward in rewards.tolist()]


def _numbers(values: Sequence[Any], name: str) -> list[float]:
    numbers: list[float] = []
    for position, value in enumerate(values):
        try:
            numbers.append(0.0 if value is None else float(value))
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(
                f"Reward function `{name}` must return floats, got {value!r} for response {position} of "
                f"{len(values)}, so no candidate can be ranked. {_REMEDY}"
            ) from None
    return numbers
