"""
Put rewards of different prompts and reward models on one scale, computed from the pool itself.
"""

from __future__ import annotations

import torch

from hf_itp.arrays import as_floats
from hf_itp.checks import check_choice, check_rewards, check_same_prompts
from hf_itp.functional.calibration import calibrate_rewards

NORMALIZATIONS = ("none", "zscore", "quantile")


def normalize_rewards(
    rewards: torch.Tensor, normalize: str = "none", reference: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Return the rewards on the scale that `normalize` names:

    - `"none"`: unchanged.
    - `"zscore"`: minus the mean of the pool, divided by its (population) standard deviation. 0 if the pool is all
      equal.
    - `"quantile"`: mid-rank \\( (i - 1/2) / N \\) in the pool, averaged over ties: the calibrated reward of each
      candidate among the pool itself.

    Args:
        rewards (`torch.Tensor` of shape `(..., M)`): Finite rewards.
        normalize (`str`, *optional*, defaults to `"none"`): `"none"`, `"zscore"` or `"quantile"`.
        reference (`torch.Tensor` of shape `(..., N)`, *optional*):
            The pool whose mean, deviation or ranks are used. Defaults to `rewards` itself.

    Returns:
        `torch.Tensor` of shape `(..., M)`, float64.

    Raises:
        `ValueError`: If `normalize` is none of the three, or a reward is not finite.

    Examples:

    ```python
    >>> import torch
    >>> normalize_rewards(torch.tensor([3.0, 1.0, 3.0, 9.0]), "quantile")
    tensor([0.5000, 0.1250, 0.5000, 0.8750], dtype=torch.float64)
    >>> normalize_rewards(torch.tensor([5.0]), "zscore", reference=torch.tensor([1.0, 3.0]))
    tensor([3.], dtype=torch.float64)

    ```
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    rewards = check_rewards(rewards)
    pool = rewards if reference is None else check_rewards(reference, "reference")
    check_same_prompts(rewards, "reference", pool)
    if normalize == "quantile":
        return _mid_ranks(rewards) if reference is None else calibrate_rewards(rewards, pool)
    if normalize == "zscore":
        return _zscore(rewards, pool)
    return rewards


def _mid_ranks(rewards: torch.Tensor) -> torch.Tensor:
    # calibrate_rewards(rewards, rewards) with a single sort.
    ascending, order = rewards.sort(dim=-1)
    size = rewards.shape[-1]
    twice = torch.arange(1, 2 * size, 2, device=rewards.device).expand_as(order)
    if (ascending[..., 1:] == ascending[..., :-1]).any():
        twice = torch.searchsorted(ascending, ascending) + torch.searchsorted(ascending, ascending, right=True)
    return torch.empty_like(rewards).scatter_(-1, order, twice.to(rewards.dtype) / (2 * size))


def _zscore(rewards: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    lowest, span, mean, deviation = _location_and_spread(pool)
    flat = span == 0
    scores = ((rewards - lowest) / span.where(~flat, 1) - mean) / deviation.where(~flat, 1)
    return scores.where(~flat, 0)


def _location_and_spread(pool: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return the lowest reward and the range of a pool, then the mean and the deviation relative to the lowest and in
    units of the range: a large offset costs no digits, and no square overflows or underflows. Each `(..., 1)`.
    """
    lowest = pool.amin(dim=-1, keepdim=True)
    span = pool.amax(dim=-1, keepdim=True) - lowest
    pool = (pool - lowest) / span.where(span > 0, 1)
    mean = pool.mean(dim=-1, keepdim=True)
    return lowest, span, mean, (pool - mean).square().mean(dim=-1, keepdim=True).sqrt()


def in_reward_units(values: torch.Tensor, rewards: torch.Tensor, normalize: str) -> torch.Tensor:
    """
    Return values on the scale of `normalize` in units of the rewards, such as the normalizer that pessimism reports.

    The inverse of [`normalize_rewards`] for `"none"` and `"zscore"`. Ranks have none.

    Args:
        values (`torch.Tensor` of shape `(...)`): One value per pool.
        rewards (`torch.Tensor` of shape `(..., N)`): The pools.
        normalize (`str`): `"none"` or `"zscore"`.

    Returns:
        `torch.Tensor` of shape `(...)`, float64.

    Raises:
        `ValueError`: If `normalize` is neither, or a reward is not finite.

    Examples:

    ```python
    >>> import torch
    >>> in_reward_units(torch.tensor(3.0), torch.tensor([1.0, 3.0]), "zscore")
    tensor(5., dtype=torch.float64)

    ```
    """
    check_choice("normalize", normalize, ("none", "zscore"), "Ranks have no inverse in units of the reward.")
    values = as_floats(values, "values").to(torch.float64)
    if normalize == "none":
        return values
    lowest, span, mean, deviation = (part.squeeze(-1) for part in _location_and_spread(check_rewards(rewards)))
    return (values * deviation + mean) * span + lowest
