"""
Checks that stand in front of every formula: what cannot be ranked is an error, never a silent number.
"""

from __future__ import annotations

import math

import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError


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


def check_positive(name: str, value: float, remedy: str) -> None:
    """Raises unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"`{name}` has to be a positive number, but is {value!r}. {remedy}")
    if not 0 < value < float("inf"):
        raise ArgumentError(f"`{name}` has to be positive and finite, but is {value}. {remedy}")


def check_num_return_sequences(num_return_sequences: int, num_candidates: int) -> None:
    """Raises unless as many different candidates can be returned as were asked for."""
    if isinstance(num_return_sequences, bool) or not isinstance(num_return_sequences, int):
        raise ArgumentTypeError(
            f"`num_return_sequences` has to be an int, but is {num_return_sequences!r}. Give a whole number."
        )
    if not 1 <= num_return_sequences <= num_candidates:
        raise ArgumentError(
            f"`num_return_sequences` has to be between 1 and the number of candidates ({num_candidates}), but is "
            f"{num_return_sequences}. Draw more candidates or return fewer sequences."
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of the choices."""
    if value not in choices:
        raise ArgumentError(
            f"`{name}` has to be one of {', '.join(map(repr, choices))}, but is {value!r}. Choose one of them."
        )
