"""
Draw and score the candidates of one call, and gather them in pools: one per prompt, with its rewards.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch

from hf_itp.distributed.sharding import ShardedSource
from hf_itp.errors import ScoringError
from hf_itp.generation.reviewer import Reviewer
from hf_itp.rewards import RewardFunction
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.forward.passes import devices
from hf_itp.rewards.logs import RewardLog
from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.loop import Review
from hf_itp.sampling.row_calls import Pair
from hf_itp.sampling.thinking import RewardReader, rewards_where_said


class CandidateSource:
    """
    Draw candidates for the prompts of a call and score them.

    Args:
        call ([`DecodingCall`]): What is drawn for, and how.
        reward ([`RewardFunction`]): Scores what was drawn.
        prompts (`list`): What the reward sees, one per row.
        columns (`dict[str, list]`): Further columns for the reward, one entry per row.
        readers (`list[RewardReader]`): Read responses to each row as the reward sees them.
        overlaps (`bool`): Whether a batch may be scored while the next one is drawn.
        places (`list[int]`): The number of each row in the whole batch.
        num_prompts (`int`): Size of the whole batch.
    """

    def __init__(
        self,
        call: DecodingCall,
        reward: RewardFunction,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]],
        readers: Sequence[RewardReader],
        overlaps: bool,
        places: Sequence[int],
        num_prompts: int,
    ):
        self._call, self._reward, self._prompts, self._columns = call, reward, prompts, columns
        self._places, self._num_prompts = places, num_prompts
        self._drawn: dict[Pair, torch.Tensor] = {}
        self.log = RewardLog()
        self._readers = readers
        # If policy and reward are known to share no device, scoring takes no time from the draw.
        self._overlaps = overlaps and bool(reward.devices) and reward.devices.isdisjoint(devices(call.model))
        self._being_scored: list[tuple[list[Pair], Future[torch.Tensor]]] = []
        self.seconds: dict[str, float] = defaultdict(float)

    @cached_property
    def sampler(self) -> CandidateSampler:
        """The sampler, which runs the prompts when it is first asked for."""
        started = time.perf_counter()
        sampler = CandidateSampler(self._call)
        self.seconds["prefill"] += time.perf_counter() - started
        return sampler

    def collect(self, pairs: list[Pair]) -> tuple[dict[Pair, torch.Tensor], torch.Tensor]:
        """Draw and score candidates; return their responses and rewards `(len(pairs),)`."""
        drawn = self.draw(pairs)
        return dict(zip(pairs, drawn, strict=True)), self.score(pairs, drawn)

    def fetch(self, pairs: Sequence[Pair], held: dict[Pair, torch.Tensor]) -> dict[Pair, torch.Tensor]:
        """Return the responses of `pairs`: all that were drawn are held here."""
        return held

    def logged(self) -> RewardLog:
        """Return what the reward has logged."""
        return self.log

    def finish_reasons(self, pairs: Sequence[Pair]) -> dict[Pair, str]:
        """Return why each response ended ([`~sampling.cohort.Responses`])."""
        return {pair: self.sampler.finish_reasons[pair] for pair in pairs}

    def draw(self, pairs: list[Pair], review: Callable[[list[Pair]], Review] | None = None) -> list[torch.Tensor]:
        """Return one response per pair of a prompt and an index; see [`CandidateSampler.draw`]."""
        sampler, started, scored_before = self.sampler, time.perf_counter(), self.seconds["reward"]
        if self._overlaps and review is None:
            drawn = self._draw_while_scoring(pairs)
        else:
            drawn = sampler.draw(pairs, review)
        self._drawn.update(zip(pairs, drawn, strict=True))
        scored = self.seconds["reward"] - scored_before
        self.seconds["sampling"] += time.perf_counter() - started - scored
        return drawn

    def score(self, pairs: list[Pair], responses: list[torch.Tensor]) -> torch.Tensor:
        """
        Return the rewards `(len(pairs),)` of responses, each to the prompt of its pair, NaN for no reward.

        Raises:
            `ScoringError`: If the reward fails; holds what was drawn.
        """
        started = time.perf_counter()
        try:
            rewards = self._scored(pairs, responses)
        except Exception as error:
            written = self._drawn | dict(zip(pairs, responses, strict=True))
            candidates: list[list[torch.Tensor]] = [[] for _ in range(self._num_prompts)]
            for (row, _), response in sorted(written.items(), key=lambda item: item[0]):
                candidates[self._places[row]].append(response)
            raise ScoringError.of(error, self._reward.name, candidates) from error
        self.seconds["reward"] += time.perf_counter() - started
        return rewards

    def _scored(self, pairs: list[Pair], responses: list[torch.Tensor]) -> torch.Tensor:
        being_scored, self._being_scored = self._being_scored, []
        if being_scored:
            scored = {
                pair: reward
                for batch, future in being_scored
                for pair, reward in zip(batch, future.result(), strict=True)
            }
            return torch.stack([scored[pair] for pair in pairs])
        return self._rewards(pairs, responses)

    def _draw_while_scoring(self, pairs: list[Pair]) -> list[torch.Tensor]:
        scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_itp_reward")

        def submit(batch: list[Pair], responses: list[torch.Tensor]) -> None:
            self._being_scored.append((batch, scorer.submit(self._rewards, batch, responses)))

        try:
            drawn = self.sampler.draw(pairs, on_batch=submit)
        except BaseException:
            scorer.shutdown(cancel_futures=True)
            raise
        scorer.shutdown(wait=False)
        return drawn

    def _rewards(self, pairs: list[Pair], responses: list[torch.Tensor]) -> torch.Tensor:
        rows = [row for row, _ in pairs]
        texts = [self._readers[row](ids.tolist()) for row, ids in zip(rows, responses, strict=True)]

        def score(said: list[int]) -> torch.Tensor:
            of_rows = [rows[place] for place in said]
            columns: dict[str, Any] = {
                name: [column[row] for row in of_rows] for name, column in self._columns.items()
            }
            columns |= self.log.loggers([(self._places[rows[place]], pairs[place][1]) for place in said])
            return self._reward.rewards_of(
                [self._prompts[row] for row in of_rows],
                [texts[place] for place in said],
                [responses[place] for place in said],
                columns,
            )

        return rewards_where_said(texts, score)


class CandidatePools:
    """
    One growing pool per prompt.

    Args:
        source ([`CandidateSource`] or [`ShardedSource`]): Draws and scores. With a [`ShardedSource`] the pools hold
            the rewards of all processes, and [`responses`] fetches the responses of the others.
        num_prompts (`int`): How many pools.
        reviewer ([`Reviewer`], *optional*): Ends candidates early.
    """

    def __init__(self, source: CandidateSource | ShardedSource, num_prompts: int, reviewer: Reviewer | None = None):
        self._source, self._reviewer, self.seconds = source, reviewer, source.seconds
        self._held: dict[Pair, torch.Tensor] = {}
        self.rewards: list[torch.Tensor] = [torch.empty(0, dtype=torch.float32) for _ in range(num_prompts)]

    def extend(self, rows: Sequence[int], count: int) -> None:
        """Draw and score `count` further candidates for each prompt in `rows`."""
        pairs = [(row, len(self.rewards[row]) + i) for row in rows for i in range(count)]
        drawn, rewards = (self._reviewer or self._source).collect(pairs)
        self._held.update(drawn)
        for row, further in zip(rows, rewards.split(count), strict=True):
            self.rewards[row] = torch.cat([self.rewards[row], further])

    def comparable_rewards(self, row: int) -> torch.Tensor:
        """Return the rewards of one prompt's candidates as the strategy compares them."""
        rewards = self.rewards[row]
        return rewards if self._reviewer is None else self._reviewer.comparable(row, rewards)

    def responses(self, indices: Sequence[Sequence[int]] | None = None) -> list[list[torch.Tensor]]:
        """Return the responses at `indices`, row by row; by default all that were drawn."""
        indices = [range(len(rewards)) for rewards in self.rewards] if indices is None else indices
        pairs = [(row, index) for row, of_row in enumerate(indices) for index in of_row]
        found = self._source.fetch(pairs, self._held)
        return [[found[row, index] for index in of_row] for row, of_row in enumerate(indices)]

    def finish_reasons(self) -> list[list[str]]:
        """Return why each response ended, row by row; `"rejected"` if a review gave it up."""
        pairs = [(row, index) for row, rewards in enumerate(self.rewards) for index in range(len(rewards))]
        found = self._source.finish_reasons(pairs)
        if self._reviewer is not None:
            found |= dict.fromkeys(self._reviewer.given_up(pairs), "rejected")
        return [[found[row, index] for index in range(len(rewards))] for row, rewards in enumerate(self.rewards)]

    def reward_table(self) -> torch.Tensor:
        """Return all rewards `(B, P)`: NaN for no reward, and where a prompt drew fewer candidates than another."""
        return torch.nn.utils.rnn.pad_sequence(self.rewards, batch_first=True, padding_value=torch.nan)

    def diagnostics(self, winners: torch.Tensor) -> dict[str, Any]:
        """Return what drawing and scoring add to the diagnostics, given the rewards `(B,)` of the first winners."""
        found: dict[str, Any] = {"no_reward": torch.stack([rewards.isnan().sum() for rewards in self.rewards])}
        log = self._source.logged()
        if log.metrics or log.extra:
            found["reward_log"] = log.values([len(rewards) for rewards in self.rewards])
        return found | ({} if self._reviewer is None else self._reviewer.diagnostics(self.responses(), winners))
