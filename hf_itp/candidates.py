"""
The pools of one call: what was drawn for each prompt so far, and its rewards.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_itp.rewards import RewardFunction
from hf_itp.rewards.base import Prompt
from hf_itp.sampling.engines import Engine


class CandidatePools:
    """
    One growing pool per prompt.

    Args:
        sampler ([`~sampling.engines.Engine`]): Draws for the rows of the batch.
        reward ([`RewardFunction`]): Scores what was drawn.
        tokenizer (`PreTrainedTokenizerBase`): The policy's, to turn responses into text.
        prompts (`list`): What the reward sees, one per row.
    """

    def __init__(
        self,
        sampler: Engine,
        reward: RewardFunction,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
    ):
        self._sampler, self._reward, self._tokenizer, self._prompts = sampler, reward, tokenizer, prompts
        self.responses: list[list[torch.Tensor]] = [[] for _ in prompts]
        self.rewards: list[torch.Tensor] = [torch.empty(0) for _ in prompts]
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def extend(self, rows: Sequence[int], count: int) -> None:
        """Draws and scores `count` further candidates for each prompt in `rows`."""
        started = time.perf_counter()
        drawn = self._sampler.draw([(row, len(self.responses[row]) + i) for row in rows for i in range(count)])
        sampled = time.perf_counter()
        rewards = self._score([row for row in rows for _ in range(count)], drawn)
        for position, row in enumerate(rows):
            mine = slice(position * count, (position + 1) * count)
            self.responses[row] += drawn[mine]
            self.rewards[row] = torch.cat([self.rewards[row], rewards[mine]])
        self.seconds["sampling"] += sampled - started
        self.seconds["reward"] += time.perf_counter() - sampled

    def _score(self, rows: Sequence[int], responses: Sequence[torch.Tensor]) -> torch.Tensor:
        """One reward per response, each to the prompt of its row."""
        texts = self._tokenizer.batch_decode([ids.tolist() for ids in responses], skip_special_tokens=True)
        return self._reward([self._prompts[row] for row in rows], texts, responses)

    def comparable_rewards(self, row: int) -> torch.Tensor:
        """Rewards of one prompt's candidates as the strategy is to compare them."""
        return self.rewards[row]

    def diagnostics(self, selected: torch.Tensor) -> dict[str, Any]:
        """What the way the pools were drawn adds to the diagnostics, given the winners `(B, k)`."""
        return {}

    def reward_table(self) -> torch.Tensor:
        """All rewards `(B, P)`, NaN where a prompt drew fewer candidates than the one that drew most."""
        return torch.nn.utils.rnn.pad_sequence(self.rewards, batch_first=True, padding_value=torch.nan)

    def num_tokens(self) -> torch.Tensor:
        """Length of every response `(B, P)`, 0 where none was drawn."""
        lengths = [torch.tensor([len(response) for response in pool]) for pool in self.responses]
        return torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True, padding_value=0)
