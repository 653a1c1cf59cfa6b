"""
Checks that stand in front of every formula: what cannot be ranked is an error, never a silent number.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Set
from typing import Any

import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError, StrategyError

# Of a law in float32, generously: what a law misses 1 by for another reason is larger.
_ROUNDING = 1e-4


def check_rewards(rewards: torch.Tensor, name: str = "rewards") -> torch.Tensor:
    """
    The rewards as float64, once they are known to be a tensor of shape `(..., N)`, `N >= 1`, without NaN or infinity.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): What a caller gave.
        name (`str`, *optional*, defaults to `"rewards"`): The argument's name, for the messages.

    Examples:

    ```python
    >>> import torch
    >>> check_rewards(torch.tensor([1, 2])).dtype
    torch.float64

    ```
    """
    check_finite(rewards, name)
    return rewards.detach().to(torch.float64)


def check_finite(rewards: torch.Tensor, name: str = "rewards") -> None:
    """Raises unless `rewards` are what [`check_rewards`] takes; makes no copy."""
    if not isinstance(rewards, torch.Tensor):
        raise ArgumentTypeError(
            f"`{name}` has to be a torch.Tensor of shape (..., N), but is a {type(rewards).__name__}. Wrap it in "
            "torch.tensor(...)."
        )
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ArgumentError(
            f"`{name}` has to have shape (..., N) with N at least 1, but has shape {tuple(rewards.shape)}. Score at "
            "least one candidate per prompt."
        )
    if rewards.is_complex() or rewards.dtype == torch.bool:
        raise ArgumentTypeError(f"`{name}` has to hold real numbers, but has dtype {rewards.dtype}. Convert it first.")
    # One pass over the data: NaN and both infinities reach an extreme.
    if rewards.numel() and not all(
        math.isfinite(extreme) for extreme in torch.stack(rewards.detach().aminmax()).tolist()
    ):
        index = tuple((~torch.isfinite(rewards)).nonzero()[0].tolist())
        where = f"prompt {index[:-1] if len(index) > 2 else index[0]}, candidate {index[-1]}"
        if len(index) == 1:
            where = f"candidate {index[0]}"
        subject = "Reward" if name == "rewards" else f"`{name}`"
        raise RewardError(
            f"{subject} of {where} is {rewards[index].item()}, so no candidate can be ranked. Return a finite float "
            "for every response."
        )


def as_number(value: Any) -> int | float | None:
    """
    One real number as a plain Python one, `None` for anything else.

    Taken are Python's and numpy's numbers, and tensors and arrays without dimensions. A bool, of whatever library, is
    no number.

    Examples:

    ```python
    >>> import torch
    >>> as_number(torch.tensor(3)), as_number(0.5), as_number(True), as_number("3")
    (3, 0.5, None, None)

    ```
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # numpy's numbers are among them: a plain number is all that JSON, repr and tensor arithmetic are sure of.
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def as_list(values: Any) -> list | None:
    """
    The entries of a list, tuple, array, pandas Series, column of a data set or the like, in order; `None` for anything
    else: text, a mapping, a table (which would give the names of its columns), an iterator (which can be read once).

    Examples:

    ```python
    >>> as_list(("a", "b")), as_list("ab"), as_list({"a": 1})
    (['a', 'b'], None, None)

    ```
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or hasattr(values, "columns"):
        return None
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())  # of Arrow, whose entries are no plain values
    if not hasattr(values, "__len__") or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        return None
    return list(values)


def check_count(name: str, value: Any, at_least: int, remedy: str) -> int:
    """
    The whole number as a plain int, once it is known to be one of at least `at_least`.

    Args:
        name (`str`): The argument's, for the message.
        value: What a caller gave; see [`as_number`]. A float is no whole number, whatever its value.
        at_least (`int`): The smallest allowed.
        remedy (`str`): The message's last sentence.

    Examples:

    ```python
    >>> import torch
    >>> check_count("seed", torch.tensor(7), 0, "Pass e.g. seed=0.")
    7

    ```
    """
    count = as_number(value)
    if not isinstance(count, int) or count < at_least:
        raise ArgumentError(f"`{name}` has to be an integer of at least {at_least}, but is {value!r}. {remedy}")
    return count


def check_number(name: str, value: Any, remedy: str) -> int | float:
    """The finite number as a plain Python one; see [`as_number`]."""
    number = as_number(value)
    if number is None:
        raise ArgumentTypeError(f"`{name}` has to be a number, but is {value!r}. {remedy}")
    if not math.isfinite(number):
        raise ArgumentError(f"`{name}` has to be finite, but is {number}. {remedy}")
    return number


def check_positive(name: str, value: Any, remedy: str) -> int | float:
    """The finite number above 0 as a plain Python one; see [`as_number`]."""
    number = as_number(value)
    if number is None:
        raise ArgumentTypeError(f"`{name}` has to be a positive number, but is {value!r}. {remedy}")
    if not 0 < number < math.inf:
        raise ArgumentError(f"`{name}` has to be positive and finite, but is {number}. {remedy}")
    return number


def check_num_return_sequences(num_return_sequences: Any, num_candidates: int) -> int:
    """The number as a plain int, once as many different candidates can be returned as were asked for."""
    count = as_number(num_return_sequences)
    if not isinstance(count, int):
        raise ArgumentTypeError(
            f"`num_return_sequences` has to be an int, but is {num_return_sequences!r}. Give a whole number."
        )
    if not 1 <= count <= num_candidates:
        raise ArgumentError(
            f"`num_return_sequences` has to be between 1 and the number of candidates ({num_candidates}), but is "
            f"{count}. Draw more candidates or return fewer sequences."
        )
    return count


def check_law(law: Any, rewards: torch.Tensor, strategy: str, first_row: int | None = 0) -> torch.Tensor:
    """
    The law of a strategy on pools, float64, once every row is known to be one.

    Args:
        law (`torch.Tensor` of shape `(..., N)`): What `Strategy.probabilities` gave. Rounding of `1e-4` is let pass.
        rewards (`torch.Tensor` of shape `(..., N)`): What it was given.
        strategy (`str`): Its name, for the message.
        first_row (`int`, *optional*, defaults to 0): Number of the first prompt; `None` where there is but one.

    Raises:
        `StrategyError`: If the law is of another shape, or a row is negative, not finite or sums to something else
            than 1; names the row.
    """
    remedy = "Return one probability per candidate from `probabilities`."
    if not isinstance(law, torch.Tensor):
        raise StrategyError(
            f"`probabilities` of strategy {strategy!r} must return a torch.Tensor, got a {type(law).__name__}. "
            f"{remedy}"
        )
    if law.shape != rewards.shape or law.is_complex() or law.dtype == torch.bool:
        raise StrategyError(
            f"`probabilities` of strategy {strategy!r} must return real numbers of the rewards' shape "
            f"{tuple(rewards.shape)}, got shape {tuple(law.shape)} and dtype {law.dtype}. {remedy}"
        )
    law = law.detach().to(torch.float64)
    total = law.sum(dim=-1)
    # Written so that a NaN fails both comparisons.
    good = (law >= -_ROUNDING).all(dim=-1) & ((total - 1).abs() <= _ROUNDING)
    if not good.all():
        row = int((~good).flatten().nonzero()[0])
        where = "" if first_row is None or law.dim() == 1 else f" for prompt {first_row + row}"
        raise StrategyError(
            f"`probabilities` of strategy {strategy!r} must be nonnegative and sum to 1, but{where} they sum to "
            f"{total.flatten()[row].item():.6g}, the smallest being "
            f"{law.reshape(-1, law.shape[-1])[row].min().item():.6g}. {remedy}"
        )
    return law.clamp_min(0)


def check_indices(
    indices: Any, num_return_sequences: int, num_candidates: int, strategy: str, row: int
) -> torch.Tensor:
    """
    The indices a strategy selected for one prompt, `(k,)` and int64, once they are known to name different candidates.

    Raises:
        `StrategyError`: If they are not `k` different whole numbers from 0 to `num_candidates - 1`; names the row.
    """
    found = indices.tolist() if isinstance(indices, torch.Tensor) else indices
    places = range(num_candidates)
    whole = isinstance(indices, torch.Tensor) and not (
        indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool
    )
    if (
        not whole
        or indices.shape != (num_return_sequences,)
        or len(set(found)) < num_return_sequences
        or not all(index in places for index in found)
    ):
        raise StrategyError(
            f"Strategy {strategy!r} must select {num_return_sequences} different indices from 0 to "
            f"{num_candidates - 1} as a LongTensor, but for prompt {row} selected {found!r:.80}. Correct its `select` "
            "or `decide`."
        )
    return indices.to(device="cpu", dtype=torch.int64)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of the choices."""
    if value not in choices:
        raise ArgumentError(
            f"`{name}` has to be one of {', '.join(map(repr, choices))}, but is {value!r}. Choose one of them."
        )
