"""
Checks shared by the whole package: an argument that breaks its rule raises an error.

Every message has one form, made by [`must_be`]: "`beta` must be positive, got -1. Pass e.g. beta=0.1."
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, NumberError, RewardError, StrategyError

# A generous bound on the float32 rounding of a law; any other error is larger.
_ROUNDING = 1e-4


def must_be(name: str, rule: str, value: object, remedy: str) -> str:
    """
    Return the message of a broken rule.

    Examples:

    ```python
    >>> must_be("beta", "positive", -1, "Pass e.g. beta=0.1.")
    '`beta` must be positive, got -1. Pass e.g. beta=0.1.'

    ```
    """
    return f"`{name}` must be {rule}, got {value!r:.80}. {remedy}"


def check_rewards(rewards: torch.Tensor, name: str = "rewards") -> torch.Tensor:
    """
    Return the rewards as float64 after [`check_finite`].

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
    """Raise unless `rewards` is a finite real tensor of shape `(..., N)` with `N >= 1`. Makes no copy."""
    if not isinstance(rewards, torch.Tensor):
        raise ArgumentTypeError(
            f"`{name}` must be a torch.Tensor of shape (..., N), got a {type(rewards).__name__}. Wrap it in "
            "torch.tensor(...)."
        )
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ArgumentError(
            f"`{name}` must have shape (..., N) with N at least 1, got shape {tuple(rewards.shape)}. Score at least "
            "one candidate per prompt."
        )
    if rewards.is_complex() or rewards.dtype == torch.bool:
        raise ArgumentTypeError(f"`{name}` must hold real numbers, got dtype {rewards.dtype}. Convert it first.")
    # One pass over the data: NaN and both infinities reach an extreme.
    if rewards.numel() and not all(
        math.isfinite(extreme) for extreme in torch.stack(rewards.detach().aminmax()).tolist()
    ):
        index = tuple((~torch.isfinite(rewards)).nonzero()[0].tolist())
        where = f"prompt {index[:-1] if len(index) > 2 else index[0]}, candidate {index[-1]}"
        if len(index) == 1:
            where = f"candidate {index[0]}"
        raise RewardError(
            f"`{name}` must be finite, got {rewards[index].item()} for {where}, so no candidate can be ranked. Return "
            "a finite float for every response."
        )


def check_same_prompts(rewards: torch.Tensor, name: str, reference: torch.Tensor) -> None:
    """Raise unless `reference` has the leading shape of `rewards`: one row for each prompt."""
    if rewards.shape[:-1] != reference.shape[:-1]:
        raise ArgumentError(
            f"`{name}` must have the leading shape of `rewards` {tuple(rewards.shape[:-1])}, got "
            f"{tuple(reference.shape[:-1])}. Give each prompt its row."
        )


def as_number(value: Any) -> int | float | None:
    """
    Return a real number as a plain Python number, `None` for anything else.

    Accepts Python's and numpy's numbers, and tensors and arrays without dimensions. A bool is not a number.

    Examples:

    ```python
    >>> import torch
    >>> as_number(torch.tensor(3)), as_number(0.5), as_number(True), as_number("3")
    (3, 0.5, None, None)

    ```
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # Also numpy's numbers: JSON, repr and tensor arithmetic are only sure of a plain one.
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def as_list(values: Any) -> list | None:
    """
    Return the entries of a list, tuple, array, pandas Series, data set column or the like, in order.

    `None` for anything else: text, a mapping, a table (whose entries are column names), an iterator (read only once).

    Examples:

    ```python
    >>> as_list(("a", "b")), as_list("ab"), as_list({"a": 1})
    (['a', 'b'], None, None)

    ```
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or hasattr(values, "columns"):
        return None
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())  # Arrow's entries are not plain values
    if not hasattr(values, "__len__") or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        return None
    return list(values)


def check_count(name: str, value: Any, at_least: int, remedy: str, at_most: int | None = None, what: str = "") -> int:
    """
    Return an integer within its bounds as a plain `int`.

    Args:
        name (`str`): The argument's name, for the message.
        value: What a caller gave; see [`as_number`]. A float is refused, whatever its value.
        at_least (`int`): The smallest allowed.
        remedy (`str`): The message's last sentence.
        at_most (`int`, *optional*): The largest allowed.
        what (`str`, *optional*): What `at_most` is, for the message.

    Raises:
        `NumberError`: If the value is not an integer.
        `ArgumentError`: If it is out of bounds.

    Examples:

    ```python
    >>> import torch
    >>> check_count("seed", torch.tensor(7), 0, "Pass e.g. seed=0.")
    7

    ```
    """
    rule = f"an integer of at least {at_least}"
    if at_most is not None:
        rule = f"an integer from {at_least} to {at_most}{what and f' ({what})'}"
    count = as_number(value)
    if not isinstance(count, int):
        raise NumberError(must_be(name, rule, value, f"Give a whole number. {remedy}"))
    if count < at_least or (at_most is not None and count > at_most):
        raise ArgumentError(must_be(name, rule, count, remedy))
    return count


def check_number(
    name: str, value: Any, remedy: str, rule: str = "finite", holds: Callable[[float], bool] = math.isfinite
) -> int | float:
    """
    Return the number as a plain Python one if it is finite and `holds` is true for it.

    Args:
        name (`str`): The argument's name, for the message.
        value: What a caller gave; see [`as_number`].
        remedy (`str`): The message's last sentence.
        rule (`str`, *optional*, defaults to `"finite"`): What `holds` tests, after "must be".
        holds (`Callable[[float], bool]`, *optional*): The rule.

    Raises:
        `NumberError`: If the value is not a number.
        `ArgumentError`: If it breaks the rule.

    Examples:

    ```python
    >>> check_number("share", 0.5, "Pass e.g. share=0.5.", "from 0 to 1", lambda share: 0 <= share <= 1)
    0.5

    ```
    """
    number = as_number(value)
    if number is None:
        raise NumberError(must_be(name, "a number", value, remedy))
    if not -math.inf < number < math.inf:  # math.isfinite overflows on a large int
        raise ArgumentError(must_be(name, "finite", number, remedy))
    if not holds(number):
        raise ArgumentError(must_be(name, rule, number, remedy))
    return number


def check_positive(name: str, value: Any, remedy: str) -> int | float:
    """Return the number as a plain Python one if it is finite and above 0; see [`check_number`]."""
    return check_number(name, value, remedy, "positive", lambda number: number > 0)


def check_num_return_sequences(num_return_sequences: Any, num_candidates: int) -> int:
    """Return the number as a plain `int` if that many different candidates can be returned."""
    remedy = "Draw more candidates or return fewer sequences."
    return check_count("num_return_sequences", num_return_sequences, 1, remedy, num_candidates, "`num_candidates`")


def check_law(law: Any, rewards: torch.Tensor, strategy: str, first_row: int | None = 0) -> torch.Tensor:
    """
    Return the law of a strategy on pools as float64.

    Args:
        law (`torch.Tensor` of shape `(..., N)`): What `Strategy.probabilities` returned, up to rounding of `1e-4`.
        rewards (`torch.Tensor` of shape `(..., N)`): What it was given.
        strategy (`str`): Its name, for the message.
        first_row (`int`, *optional*, defaults to 0): Number of the first prompt; `None` if there is only one.

    Raises:
        `StrategyError`: If the shape differs from that of the rewards, or a row is negative, not finite or does not
            sum to 1. Names the row.
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
            f"`probabilities` of strategy {strategy!r} must be nonnegative and sum to 1, got a sum of "
            f"{total.flatten()[row].item():.6g} and a smallest of "
            f"{law.reshape(-1, law.shape[-1])[row].min().item():.6g}{where}. {remedy}"
        )
    return law.clamp_min(0)


def check_indices(
    indices: Any, num_return_sequences: int, num_candidates: int, strategy: str, row: int
) -> torch.Tensor:
    """
    Return the indices a strategy selected for one prompt as int64 of shape `(k,)`.

    Raises:
        `StrategyError`: If they are not `k` different integers from 0 to `num_candidates - 1`. Names the row.
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
            f"{num_candidates - 1} as a LongTensor, got {found!r:.80} for prompt {row}. Correct its `select` or "
            "`decide`."
        )
    return indices.to(device="cpu", dtype=torch.int64)


def check_choice(name: str, value: Any, choices: tuple[str, ...], remedy: str = "Choose one of them.") -> None:
    """Raise unless `value` is one of the choices."""
    if value not in choices:
        raise ArgumentError(must_be(name, f"one of {', '.join(map(repr, choices))}", value, remedy))
