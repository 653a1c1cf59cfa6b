"""
Turn the rows of a pool into tensors: prompts with equally many rewards are a block.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_itp.errors import ArgumentError
from hf_itp.pools.schema import GOLD, numbers, reward_column


@dataclass(frozen=True)
class Block:
    """
    Prompts that have equally many rewards.

    Args:
        prompts (`torch.LongTensor` of shape `(P,)`): Their places in the pool.
        rewards (`torch.DoubleTensor` of shape `(P, M)`): What the strategies see.
        gold (`torch.DoubleTensor` of shape `(P, M)`, *optional*): What is to be achieved.
        num_tokens (`torch.DoubleTensor` of shape `(P, M)`, *optional*): Lengths of the responses.
    """

    prompts: torch.Tensor
    rewards: torch.Tensor
    gold: torch.Tensor | None
    num_tokens: torch.Tensor | None


@dataclass(frozen=True)
class RewardTable:
    """
    All rewards of a pool.

    Args:
        blocks (`list[Block]`): By number of rewards, ascending.
        num_prompts (`int`): Rows of the pool, those without any reward included.
        no_reward (`int`): Responses without a reward, which are left out.
        rewards_name, gold_name (`str`): The columns.
    """

    blocks: list[Block]
    num_prompts: int
    no_reward: int
    rewards_name: str
    gold_name: str | None

    @property
    def smallest(self) -> int:
        """Number of rewards of the prompt with the fewest, of those that have any."""
        return self.blocks[0].rewards.shape[-1]

    @property
    def largest(self) -> int:
        """Number of rewards of the prompt with the most."""
        return self.blocks[-1].rewards.shape[-1]

    @property
    def spread(self) -> float:
        """Median over prompts of the standard deviation of their rewards; 1 if most prompts have only equal ones."""
        deviations = torch.cat([block.rewards.std(dim=-1, correction=0) for block in self.blocks])
        return float(deviations.median()) or 1.0


def reward_table(
    rows: Iterable[tuple[str, Mapping[str, Any]]], rewards: str | None = None, gold: str | None = None
) -> RewardTable:
    """
    Read the rewards of a pool. Responses without a reward are left out and counted.

    Args:
        rows (`Iterable`): From [`~pools.file.read_rows`].
        rewards (`str`, *optional*): Name of the rewards; by default the only column of rewards.
        gold (`str`, *optional*): Column of gold rewards; by default `gold_rewards` where the first row has it.

    Raises:
        `ArgumentError`: If a column is missing in a row or is not what it must be, or no response has a reward.
    """
    by_size: dict[int, dict[str, array]] = defaultdict(lambda: defaultdict(lambda: array("d")))
    column, has_tokens, count, no_reward = "", False, 0, 0
    for where, row in rows:
        if count == 0:
            column = reward_column(row, rewards)
            gold = GOLD if gold is None and GOLD in row else gold
            has_tokens = "num_tokens" in row
        elif (gold is None and GOLD in row) or (not has_tokens and "num_tokens" in row):
            late = GOLD if gold is None and GOLD in row else "num_tokens"
            raise ArgumentError(
                f"`{late}` must be in every row of a pool or in none, got it in {where} and not in the first row. "
                "Complete the others, or remove it."
            )
        own = numbers(row, column, where)
        kept = [place for place, reward in enumerate(own) if reward is not None]
        no_reward += len(own) - len(kept)
        block = by_size[len(kept)]
        block["prompts"].append(count)
        count += 1
        for name, source in (
            ("rewards", column),
            ("gold", gold),
            ("num_tokens", "num_tokens" if has_tokens else None),
        ):
            if source is not None:
                block[name].extend(_kept(row, source, kept, len(own), where))
    by_size.pop(0, None)
    if not by_size:
        raise ArgumentError(f"A pool must have rewards, got {count} rows without any. Score it first.")
    blocks = [_block(by_size[size], size) for size in sorted(by_size)]
    return RewardTable(blocks, count, no_reward, column, gold)


def _kept(row: Mapping[str, Any], column: str, kept: list[int], size: int, where: str) -> list[float]:
    values = numbers(row, column, where)
    if len(values) != size:
        raise ArgumentError(
            f"`{column}` must have one entry per reward, got {len(values)} for {size} in {where}. Complete or remove "
            "the row."
        )
    found = [values[place] for place in kept]
    if None in found:
        raise ArgumentError(
            f"`{column}` must hold a number wherever there is a reward, got null in {where}. Complete it, or set the "
            "reward of that response to null too."
        )
    return [value for value in found if value is not None]


def _block(columns: Mapping[str, array], size: int) -> Block:
    def table(name: str) -> torch.Tensor | None:
        return torch.frombuffer(columns[name], dtype=torch.float64).view(-1, size) if name in columns else None

    rewards = table("rewards")
    assert rewards is not None
    prompts = torch.tensor(columns["prompts"], dtype=torch.float64).long()
    return Block(prompts, rewards, table("gold"), table("num_tokens"))
