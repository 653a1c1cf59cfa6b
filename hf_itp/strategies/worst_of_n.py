"""
Worst-of-n: the lowest reward wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import worst_of_n_law
from hf_itp.functional.subsamples import worst_of_n_subsample_law
from hf_itp.strategies.base import Strategy


@dataclass(frozen=True)
class WorstOfN(Strategy):
    """
    Return the candidate of lowest reward, ties broken at random; further sequences are the next lowest.

    *When to use*: To measure how a policy fares against an attacker who tries N times and keeps the worst response
    (best-of-n jailbreaking), or to see what a reward model dislikes. Never to serve users.

    *Cost*: N responses and N rewards per prompt.

    *Paper*: [InfAlign](https://huggingface.co/papers/2412.19792) trains policies against it.

    Example: `model.generate(**inputs, strategy="worst_of_n", reward_model=reward_model, num_candidates=32)`

    ```python
    >>> import torch
    >>> WorstOfN().select(torch.tensor([[0.1, 0.9, 0.5]]), num_return_sequences=2)
    tensor([[0, 2]])

    ```
    """

    name: ClassVar[str] = "worst_of_n"

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return worst_of_n_law(rewards)

    def preference(self, rewards: torch.Tensor) -> torch.Tensor:
        return -rewards

    def subsample_probabilities(self, rewards: torch.Tensor, num_candidates: int) -> torch.Tensor:
        return worst_of_n_subsample_law(rewards, num_candidates)
