"""
The pools of one call: what was drawn for each prompt so far, and its rewards.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_itp.distributed.sharding import Pair, Sharding
from hf_itp.rewards import RewardFunction
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.forward.passes import devices
from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.text import ResponseReader


class CandidatePools:
    """
    One growing pool per prompt.

    Args:
        sampler ([`~sampling.CandidateSampler`]): Draws for the rows of the batch.
        reward ([`RewardFunction`]): Scores what was drawn.
        tokenizer (`PreTrainedTokenizerBase`): The policy's, to turn responses into text.
        prompts (`list`): What the reward sees, one per row.
        sharding ([`Sharding`]): Which candidates this process draws. Rewards of all are in its pools; the responses of
            other processes come with [`winners`] and [`candidates`].
        columns (`dict[str, list]`, *optional*): Further columns for the reward, one entry per row.
        token_prompts (`list[list[int]]`): What the responses of each row continue.
    """

    def __init__(
        self,
        sampler: CandidateSampler,
        reward: RewardFunction,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        sharding: Sharding,
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        token_prompts: Sequence[Sequence[int]],
    ):
        self._sampler, self._reward, self._prompts = sampler, reward, prompts
        self._sharding = sharding
        self._columns = {name: list(column) for name, column in (columns or {}).items()}
        self._readers = [ResponseReader(tokenizer, row) for row in token_prompts]
        self._held: dict[Pair, torch.Tensor] = {}
        self._being_scored: list[tuple[list[Pair], Future[torch.Tensor]]] = []
        self.rewards: list[torch.Tensor] = [torch.empty(0, dtype=torch.float32) for _ in prompts]
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def extend(self, rows: Sequence[int], count: int) -> None:
        """Draws and scores `count` further candidates for each prompt in `rows`."""
        started, before = time.perf_counter(), self.seconds["sampling"] + self.seconds["reward"]
        pairs = [(row, len(self.rewards[row]) + i) for row in rows for i in range(count)]
        drawn, rewards = self._sharding.collect(pairs, self._draw, self._score_pairs)
        self._held.update(drawn)
        for position, row in enumerate(rows):
            mine = slice(position * count, (position + 1) * count)
            self.rewards[row] = torch.cat([self.rewards[row], rewards[mine]])
        if self._sharding.num_processes > 1:
            worked = self.seconds["sampling"] + self.seconds["reward"] - before
            self.seconds["waiting"] += time.perf_counter() - started - worked

    def winners(self, selected: torch.Tensor) -> list[list[torch.Tensor]]:
        """The responses at `selected` `(B, k)`, row by row."""
        return self._responses(selected.tolist())

    def candidates(self) -> list[list[torch.Tensor]]:
        """Every response drawn, row by row."""
        return self._responses([range(len(rewards)) for rewards in self.rewards])

    def _responses(self, indices: Sequence[Sequence[int]]) -> list[list[torch.Tensor]]:
        wanted = [(row, index) for row, of_row in enumerate(indices) for index in of_row]
        found = self._sharding.exchange(wanted, self._held)
        return [[found[row, index] for index in of_row] for row, of_row in enumerate(indices)]

    def _draw(self, pairs: list[Pair]) -> list[torch.Tensor]:
        started = time.perf_counter()
        sampler = self._sampler
        if isinstance(sampler, CandidateSampler) and self._scores_elsewhere(sampler):
            drawn = self._draw_while_scoring(sampler, pairs)
        else:
            drawn = sampler.draw(pairs)
        self.seconds["sampling"] += time.perf_counter() - started
        return drawn

    def _scores_elsewhere(self, sampler: CandidateSampler) -> bool:
        """Whether policy and reward are known to share no device. What another process draws is scored there."""
        reward = self._reward.devices
        return self._sharding.num_processes == 1 and bool(reward) and reward.isdisjoint(devices(sampler.model))

    def _draw_while_scoring(self, sampler: CandidateSampler, pairs: list[Pair]) -> list[torch.Tensor]:
        """Each batch is scored while the next one is drawn."""
        scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_itp_reward")

        def score(batch: list[Pair], responses: list[torch.Tensor]) -> None:
            self._being_scored.append((batch, scorer.submit(self._score, [row for row, _ in batch], responses)))

        try:
            drawn = sampler.draw(pairs, on_batch=score)
        except BaseException:
            scorer.shutdown(cancel_futures=True)
            raise
        scorer.shutdown(wait=False)
        return drawn

    def _score_pairs(self, pairs: list[Pair], drawn: list[torch.Tensor]) -> torch.Tensor:
        started = time.perf_counter()
        being_scored, self._being_scored = self._being_scored, []
        if being_scored:
            of_pair = {
                pair: reward
                for batch, scored in being_scored
                for pair, reward in zip(batch, scored.result(), strict=True)
            }
            rewards = torch.stack([of_pair[pair] for pair in pairs])
        else:
            rewards = self._score([row for row, _ in pairs], drawn)
        self.seconds["reward"] += time.perf_counter() - started
        return rewards

    def _score(self, rows: Sequence[int], responses: Sequence[torch.Tensor]) -> torch.Tensor:
        """One reward per response, each to the prompt of its row."""
        texts = [self._readers[row](ids.tolist()) for row, ids in zip(rows, responses, strict=True)]
        columns = {name: [column[row] for row in rows] for name, column in self._columns.items()}
        return self._reward.rewards_of([self._prompts[row] for row in rows], texts, responses, columns)

    def comparable_rewards(self, row: int) -> torch.Tensor:
        """Rewards of one prompt's candidates as the strategy is to compare them."""
        return self.rewards[row]

    def diagnostics(self, selected: torch.Tensor) -> dict[str, Any]:
        """What the way the pools were drawn adds to the diagnostics, given the winners `(B, k)`."""
        return {}

    def reward_table(self) -> torch.Tensor:
        """All rewards `(B, P)`, NaN where a prompt drew fewer candidates than the one that drew most."""
        return torch.nn.utils.rnn.pad_sequence(self.rewards, batch_first=True, padding_value=torch.nan)
