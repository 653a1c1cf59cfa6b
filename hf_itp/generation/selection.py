"""
Pick the winners of a call from its pools, and draw further candidates where the strategy asks for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from hf_itp.errors import ScoringError, StrategyError
from hf_itp.generation.candidates import CandidatePools
from hf_itp.sampling.streams import PromptKey, selection_generator
from hf_itp.strategies import Strategy
from hf_itp.strategies.rewarded import Decision, OnRewarded

# Candidates drawn for each that a strategy may ask for beyond the first pool, where some have no reward.
_PATIENCE = 4


class Selection:
    """
    Selection of the winners of one call.

    Args:
        strategy ([`Strategy`]): Selects.
        reward (`str`): The reward's name, for errors.
        pools ([`CandidatePools`]): The first `num_candidates` of each prompt are drawn.
        num_candidates (`int`): Size of the first pools.
        num_return_sequences (`int`): Winners per prompt.
        keys (`list`): Each prompt's stream of random numbers.

    Raises:
        `ScoringError`: If fewer candidates of a prompt have a reward than are to be returned; names the prompt.
    """

    def __init__(
        self,
        strategy: Strategy,
        reward: str,
        pools: CandidatePools,
        num_candidates: int,
        num_return_sequences: int,
        keys: Sequence[PromptKey],
    ):
        self._strategy, self._masked, self._pools = strategy, OnRewarded(strategy), pools
        self._num_candidates, self._num_returned, self._keys = num_candidates, num_return_sequences, keys
        self._decisions: list[Decision] = []
        self.first_pools = torch.stack([pools.comparable_rewards(row) for row in range(len(keys))])
        """The rewards `(B, N)` of the first pools, NaN for candidates that cannot be selected."""
        self._check_enough(reward)
        self.law = self._masked.law(self.first_pools) if strategy.takes_law else None
        """The exact law `(B, N)` of the first winners given the pools, if known before they are selected."""

    def winners(self) -> torch.Tensor:
        """Return the indices of the winners `(B, k)`; draw further candidates as the strategy asks."""
        found: list[Decision | None] = [None] * len(self._keys)
        waiting = list(range(len(self._keys)))
        limit = self.num_extra(self._num_candidates)
        while True:
            started = time.perf_counter()
            for row in waiting:
                found[row] = self._decide(row, limit)
            self._pools.seconds["selection"] += time.perf_counter() - started
            waiting = [row for row in waiting if found[row] is None]
            if not waiting:
                self._decisions = [one for one in found if one is not None]
                return torch.stack([one.indices for one in self._decisions])
            # A quarter of the pool at a time: most prompts accept early, and a batch of one is slow.
            drawn = len(self._pools.rewards[waiting[0]]) - self._num_candidates
            left = (limit if drawn < limit else _PATIENCE * limit) - drawn
            self._pools.extend(waiting, min(left, math.ceil(self._num_candidates / 4)))

    def num_extra(self, num_candidates: int) -> int:
        """Return how many candidates beyond a first pool of that size the strategy may ask for."""
        return self._strategy.num_extra_candidates(num_candidates, self._num_returned)

    def known_law(self) -> torch.Tensor | None:
        """Return the exact law `(B, N)`; `None` if it depends on candidates never drawn."""
        if self.law is None and self.num_extra(self._num_candidates) == 0:
            self.law = self._masked.law(self.first_pools)
        return self.law

    @property
    def whole_pools(self) -> torch.Tensor:
        """The rewards `(P, N)` of those first pools in which every candidate has one."""
        return self.first_pools[~self.first_pools.isnan().any(dim=-1)]

    def diagnostics(self) -> dict[str, Any]:
        """Return the strategy's diagnostics of the first pools and of what was selected."""
        return {
            **self._masked.diagnostics(self.first_pools, self.law),
            **self._masked.selection_diagnostics(self._decisions, self._num_candidates),
        }

    def _check_enough(self, reward: str) -> None:
        for row, count in enumerate((~self.first_pools.isnan()).sum(dim=-1).tolist()):
            if count < self._num_returned:
                raise ScoringError(
                    f"Prompt {row} must have at least {self._num_returned} candidates with a reward to return, got "
                    f"{count} of {self._num_candidates}: reward `{reward}` is None for the others. Draw more "
                    "candidates, or give more of them a reward. `error.candidates` holds what was drawn.",
                    self._pools.responses(),
                )

    def _decide(self, row: int, limit: int) -> Decision | None:
        """Return what is decided for a prompt, `None` if more of its candidates must be drawn first."""
        rewards, size, law = self._pools.comparable_rewards(row), self._num_candidates, self.law
        generator = selection_generator(self._keys[row])
        known = None if law is None else law[row]
        decision = self._masked.decide(rewards, size, self._num_returned, generator, row, known)
        if decision is not None or len(rewards) - size < limit:
            return decision
        there = ~rewards.isnan()
        drawn = int(there[size:].sum())
        if drawn >= self.num_extra(int(there[:size].sum())):
            raise StrategyError(
                f"Strategy {self._strategy.name!r} must decide on {drawn} candidates beyond the first {size}, as its "
                f"`num_extra_candidates` says, got a call for more for prompt {row}. Correct its `decide`."
            )
        if len(rewards) - size < _PATIENCE * limit:
            return None
        return self._masked.select_from_run(rewards, self._num_returned, selection_generator(self._keys[row]), row)
