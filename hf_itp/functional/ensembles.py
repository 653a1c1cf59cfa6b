"""
One reward per response out of the rewards of several reward models.
"""

from __future__ import annotations

import torch

from hf_itp.checks import check_choice, check_positive, check_rewards
from hf_itp.errors import ArgumentError

AGGREGATIONS = ("mean", "minimum", "mean_minus_std")


def aggregate_rewards(rewards: torch.Tensor, how: str = "mean", std_multiple: float = 1.0) -> torch.Tensor:
    r"""
    Combine the rewards of an ensemble:

    - `"mean"`: their mean.
    - `"minimum"`: the least favourable member, for each response.
    - `"mean_minus_std"`: \\( \mu - c \sigma \\) with the (population) standard deviation over the members:
      disagreement counts against a response.

    Members must be on one scale: one with rewards ten times as large decides by itself.

    Args:
        rewards (`torch.Tensor` of shape `(members, n)`): Finite rewards, one row per reward model.
        how (`str`, *optional*, defaults to `"mean"`): `"mean"`, `"minimum"` or `"mean_minus_std"`.
        std_multiple (`float`, *optional*, defaults to 1.0): `c`, positive; only for `"mean_minus_std"`.

    Returns:
        `torch.Tensor` of shape `(n,)`, float64.

    Raises:
        `ValueError`: If there is no member, a reward is not finite, or an option is none of the above.

    Examples:

    ```python
    >>> import torch
    >>> rewards = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    >>> aggregate_rewards(rewards, "minimum").tolist(), aggregate_rewards(rewards, "mean_minus_std").tolist()
    ([1.0, 5.0], [1.0, 5.0])

    ```
    """
    check_choice("how", how, AGGREGATIONS)
    std_multiple = check_positive("std_multiple", std_multiple, "Use how='mean' to ignore disagreement.")
    rewards = check_rewards(rewards)
    if rewards.dim() < 2 or rewards.shape[0] == 0:
        raise ArgumentError(
            f"`rewards` must have shape (members, n), got shape {tuple(rewards.shape)}. Stack the rewards of the "
            "members along a first dimension."
        )
    if how == "minimum":
        return rewards.amin(dim=0)
    deviation, mean = torch.std_mean(rewards, dim=0, correction=0)
    return mean - std_multiple * deviation if how == "mean_minus_std" else mean
