"""
A strategy on pools in which some candidates have no reward: NaN stands for none.

The one place where they are masked. The strategy sees the pool of the others; its law is 0 for these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from hf_itp.checks import check_indices, check_law
from hf_itp.errors import StrategyError
from hf_itp.strategies.base import Strategy


@dataclass(frozen=True)
class Decision:
    """
    What was decided for one prompt.

    Args:
        indices (`torch.LongTensor` of shape `(k,)`): Candidates to return.
        within (`torch.LongTensor` of shape `(k,)`): The same, counted among the candidates with a reward.
        num_first (`int`): Candidates with a reward in the first pool.
    """

    indices: Tensor
    within: Tensor
    num_first: int


@dataclass(frozen=True)
class OnRewarded:
    """
    A strategy that selects among the candidates that have a reward.

    Args:
        strategy ([`Strategy`]): Sees finite rewards only.

    Examples:

    ```python
    >>> import torch
    >>> from hf_itp import get_strategy
    >>> OnRewarded(get_strategy("best_of_n")).law(torch.tensor([[1.0, float("nan"), 1.0]]))
    tensor([[0.5000, 0.0000, 0.5000]], dtype=torch.float64)

    ```
    """

    strategy: Strategy

    def law(self, rewards: Tensor) -> Tensor:
        """Return the exact law `(B, N)` of the first winners given pools `(B, N)`, checked."""
        name, there = self.strategy.name, ~rewards.isnan()
        if there.all():
            return check_law(self.strategy.probabilities(rewards), rewards, name)
        law = torch.zeros(rewards.shape, dtype=torch.float64)
        for row, own in enumerate(there):
            pool = rewards[row : row + 1, own]
            law[row, own] = check_law(self.strategy.probabilities(pool), pool, name, first_row=row)[0]
        return law

    def decide(
        self,
        rewards: Tensor,
        num_candidates: int,
        num_return_sequences: int,
        generator: Generator,
        row: int,
        law: Tensor | None = None,
    ) -> Decision | None:
        """
        Return what [`Strategy.decide`] decides for prompt `row`, checked: it may be another package's.

        Args:
            rewards (`torch.Tensor` of shape `(P,)`): All rewards so far, those of the first pool first.
            law (`torch.Tensor` of shape `(P,)`, *optional*): Their law, for strategies that take it.
        """
        places = (~rewards.isnan()).nonzero().squeeze(-1)
        first = int((places < num_candidates).sum())
        known = () if law is None else (law[places],)
        try:
            within = self.strategy.decide(rewards[places], first, num_return_sequences, generator, *known)
        except StrategyError as error:
            raise StrategyError(f"No response to prompt {row} can be selected. {error}") from error
        return None if within is None else self._decision(places, within, first, num_return_sequences, row)

    def select(self, rewards: Tensor, num_return_sequences: int, generator: Generator, row: int) -> Decision:
        """Return what the strategy selects from the rewards `(P,)` of prompt `row`: all there will be."""
        places = (~rewards.isnan()).nonzero().squeeze(-1)
        within = self.strategy.select(rewards[places], num_return_sequences, generator)
        return self._decision(places, within, len(places), num_return_sequences, row)

    def select_from_run(self, rewards: Tensor, num_return_sequences: int, generator: Generator, row: int) -> Decision:
        """
        Return what a strategy that draws further candidates selects where no more will come: the rewards are read as
        those of a finished run with two equal pools and `num_return_sequences` more, without a last one too many.
        """
        places = (~rewards.isnan()).nonzero().squeeze(-1)
        first = (len(places) - num_return_sequences) // 2
        last = int(places[2 * first + num_return_sequences - 1]) + 1
        return replace(self.select(rewards[:last], num_return_sequences, generator, row), num_first=first)

    def diagnostics(self, rewards: Tensor, law: Tensor | None = None) -> dict[str, Tensor]:
        """Return the strategy's diagnostics of pools `(B, N)`."""
        there = ~rewards.isnan()
        known = (law,) if law is not None and self.strategy.takes_law else ()
        if there.all():
            return self.strategy.diagnostics(rewards, *known)
        return _joined(
            self.strategy.diagnostics(rewards[row : row + 1, own], *(law[row : row + 1, own] for law in known))
            for row, own in enumerate(there)
        )

    def selection_diagnostics(self, decisions: list[Decision], num_candidates: int) -> dict[str, Tensor]:
        """Return the strategy's diagnostics of what was decided for each prompt."""
        if all(one.num_first == num_candidates for one in decisions):
            return self.strategy.selection_diagnostics(torch.stack([one.within for one in decisions]), num_candidates)
        return _joined(self.strategy.selection_diagnostics(one.within[None], one.num_first) for one in decisions)

    def _decision(self, places: Tensor, within: Tensor, first: int, num_return_sequences: int, row: int) -> Decision:
        within = check_indices(within, num_return_sequences, len(places), self.strategy.name, row)
        return Decision(places[within], within, first)


def _joined(found: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the diagnostics of single prompts."""
    rows = list(found)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
