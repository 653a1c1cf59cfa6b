"""
Top-quantile best-of-n: picks uniformly among the best part of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import check_multiplier, top_count, top_quantile_law
from hf_itp.functional.subsamples import top_ranks_subsample_law
from hf_itp.strategies.base import Strategy, checked


@dataclass(frozen=True)
class TopQuantile(Strategy):
    """
    Return a uniform pick among the best `ceil(N / multiplier)` candidates, ties at the edge broken at random.

    *When to use*: The order of the rewards is meaningful but their size is not, for example across prompts or reward
    models. Like pessimism it does not degrade as N grows, and its one setting has no units.

    *Cost*: N responses and N rewards per prompt.

    *Paper*: [2603.05739](https://huggingface.co/papers/2603.05739): the policy conditioned on its top 1 / multiplier.

    Args:
        multiplier (`float`): At least 1: how many times likelier than under the policy a response can become. 1 is
            plain sampling, `N` and above is best-of-n.

    Example: `model.generate(**inputs, strategy="top_quantile", multiplier=8, num_candidates=32, ...)`

    ```python
    >>> import torch
    >>> TopQuantile(multiplier=2).probabilities(torch.tensor([0.9, 0.7, 0.3, 0.1]))
    tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "top_quantile"

    multiplier: float = checked(check_multiplier)

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return top_quantile_law(rewards, self.multiplier)

    def subsample_probabilities(self, rewards: torch.Tensor, num_candidates: int) -> torch.Tensor:
        return top_ranks_subsample_law(rewards, num_candidates, top_count(num_candidates, self.multiplier))
