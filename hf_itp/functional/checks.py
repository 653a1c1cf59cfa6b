"""
Checks that stand in front of every formula: what cannot be ranked is an error, never a silent number.
"""

from __future__ import annotations

import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError


def check_rewards(rewards: torch.Tensor) -> torch.Tensor:
    """
    The rewards as float64, once they are known to be a tensor of shape `(..., N)`, `N >= 1`, without NaN or infinity.

    Examples:

    ```python
    >>> import torch
    >>> check_rewards(torch.tensor([1, 2])).dtype
    torch.float64

    ```
    """
    if not isinstance(rewards, torch.Tensor):
        raise ArgumentTypeError(
            f"`rewards` has to be a torch.Tensor of shape (..., N), but is a {type(rewards).__name__}. Wrap it in "
            "torch.tensor(...)."
        )
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ArgumentError(
            f"`rewards` has to have shape (..., N) with N at least 1, but has shape {tuple(rewards.shape)}. Score at "
            "least one candidate per prompt."
        )
    if rewards.is_complex() or rewards.dtype == torch.bool:
        raise ArgumentTypeError(f"`rewards` has to hold real numbers, but has dtype {rewards.dtype}. Convert it first.")
    rewards = rewards.detach().to(torch.float64)
    finite = torch.isfinite(rewards)
    if not finite.all():
        index = tuple((~finite).nonzero()[0].tolist())
        where = f"prompt {index[:-1] if len(index) > 2 else index[0]}, candidate {index[-1]}"
        if len(index) == 1:
            where = f"candidate {index[0]}"
        raise RewardError(
            f"Reward of {where} is {rewards[index].item()}, so no candidate can be ranked. Return a finite float for "
            "every response."
        )
    return rewards


def check_positive(name: str, value: float, remedy: str) -> None:
    """Raises unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"`{name}` has to be a positive number, but is {value!r}. {remedy}")
    if not 0 < value < float("inf"):
        raise ArgumentError(f"`{name}` has to be positive and finite, but is {value}. {remedy}")
