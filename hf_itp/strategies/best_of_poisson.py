"""
Best-of-Poisson: best-of-n with a random n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import best_of_poisson_law, check_rate
from hf_itp.strategies.base import Strategy, checked


@dataclass(frozen=True)
class BestOfPoisson(Strategy):
    """
    Return the best of the first `min(N, 1 + Poisson(rate))` candidates, in the order drawn.

    *When to use*: To stay close to the optimal trade-off between reward and KL with a continuous setting in place of
    the integer n, for example when `rate` is tuned against gold rewards.

    *Cost*: N responses and N rewards per prompt. Draw at least `rate + 4 * sqrt(rate)` candidates, or the truncation
    at N changes the law.

    *Paper*: [2506.19248](https://huggingface.co/papers/2506.19248).

    Args:
        rate (`float`): Mean number of candidates beyond the first, positive.

    Example: `model.generate(**inputs, strategy="best_of_poisson", rate=8.0, num_candidates=24, ...)`

    ```python
    >>> import torch
    >>> rewards = torch.tensor([0.2, 0.9])  # with probability exp(-1) only the first is looked at
    >>> BestOfPoisson(rate=1.0).probabilities(rewards)
    tensor([0.3679, 0.6321], dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "best_of_poisson"

    rate: float = checked(check_rate)

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return best_of_poisson_law(rewards, self.rate)
