"""
Reference rewards of prompts as one sorted table, in which some may be missing: NaN, at the end of their row.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from hf_itp.arrays import as_floats
from hf_itp.checks import check_rewards
from hf_itp.errors import ArgumentError, ItpWarning
from hf_itp.pools.schema import Row


def reference_table(rows: Sequence[Row]) -> torch.Tensor:
    """Return the rewards of rows of a pool with equally many as float64 `(P, K)`, NaN for no reward."""
    values = [[math.nan if reward is None else reward for reward in row["rewards"]] for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def sorted_references(rewards: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """
    Return reference rewards as float32 `(P, K)`, each row ascending, references without a reward (NaN) last.

    Raises:
        `ArgumentError`: If the shape is another one, a prompt has fewer than 2 rewards left, or all rewards are equal.
    """
    rewards = as_floats(rewards, "reference_rewards")
    check_rewards(rewards.masked_fill(rewards.isnan(), 0.0), "reference_rewards")
    if rewards.dim() != 2 or len(rewards) != num_prompts:
        raise ArgumentError(
            f"`reference_rewards` must have shape ({num_prompts}, K), one row per prompt, got {tuple(rewards.shape)}. "
            "Give each prompt its row."
        )
    table = rewards.detach().to("cpu", torch.float32).sort(dim=-1).values
    counts, size = num_scored(table), table.shape[1]
    short = ((counts < 2) & (counts < size)).nonzero().flatten().tolist()
    if short:
        raise ArgumentError(
            f"Prompt {short[0]} must have at least 2 references with a reward, got {int(counts[short[0]])} of {size}, "
            f"and {len(short) - 1} further prompts are like it. Drop them, or draw more references."
        )
    _warn_of_constant_rewards(table, counts)
    return table


def num_scored(table: torch.Tensor) -> torch.Tensor:
    """Return how many references of each prompt `(P,)` have a reward."""
    return (~table.isnan()).sum(dim=-1)


def counts_among(references: torch.Tensor, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Count the references below and equal to each reward.

    Args:
        references (`torch.Tensor` of shape `(n, K)`): Sorted, NaN last.
        rewards (`torch.Tensor` of shape `(n,)` or `(n, N)`): Finite, float64.

    Returns:
        `tuple`: `below`, `equal` and their total with what is above, each float64 of the shape of `rewards`.
    """
    table = references.to(torch.float64)
    table = table.where(~table.isnan(), math.inf)  # above any reward
    values = rewards.reshape(len(rewards), -1).contiguous()
    below = torch.searchsorted(table, values).double()
    not_above = torch.searchsorted(table, values, right=True).double()
    total = num_scored(references).double()[:, None].expand_as(values)
    return below.view_as(rewards), (not_above - below).view_as(rewards), total.reshape(rewards.shape)


def _warn_of_constant_rewards(table: torch.Tensor, counts: torch.Tensor) -> None:
    constant = table[:, 0] == table.gather(1, (counts - 1).clamp_min(0)[:, None])[:, 0]
    if bool(constant.all()):
        raise ArgumentError(
            f"`reference_rewards` must differ between responses, got {table[0, 0].item()} for every response to a "
            "prompt. Use a reward that tells responses apart, or sample with a higher temperature."
        )
    if bool(constant.any()):
        warnings.warn(
            f"All reference rewards are equal for {int(constant.sum())} of {len(constant)} prompts, so rewards "
            "equal to them are calibrated to 0.5. Training learns nothing from these prompts: drop them.",
            ItpWarning,
            stacklevel=4,
        )
