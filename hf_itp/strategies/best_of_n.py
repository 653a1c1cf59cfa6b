"""
Best-of-n: the highest reward wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import best_of_n_law
from hf_itp.functional.subsamples import best_of_n_subsample_law
from hf_itp.strategies.base import Strategy


@dataclass(frozen=True)
class BestOfN(Strategy):
    """
    Return the candidate of highest reward, ties broken at random; further sequences are the next highest.

    *When to use*: The reward can be trusted where it is highest (a verifier, unit tests), or N is small. With a
    learned reward and a large N, the highest reward is often one of its errors: see [`Pessimism`].

    *Cost*: N responses and N rewards per prompt.

    *Paper*: [Is Best-of-N the Best of Them?](https://huggingface.co/papers/2503.21878) analyses it.

    Example: `model.generate(**inputs, strategy="best_of_n", reward_model=reward_model, num_candidates=16)`

    ```python
    >>> import torch
    >>> BestOfN().probabilities(torch.tensor([0.1, 0.9, 0.9]))
    tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    >>> BestOfN().select(torch.tensor([0.1, 0.9, 0.5]), num_return_sequences=2).tolist()
    [1, 2]

    ```
    """

    name: ClassVar[str] = "best_of_n"

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return best_of_n_law(rewards)

    def subsample_probabilities(self, rewards: torch.Tensor, num_candidates: int) -> torch.Tensor:
        return best_of_n_subsample_law(rewards, num_candidates)
