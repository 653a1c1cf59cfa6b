"""
Best-of-Poisson: best-of-n with a random n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.checks import check_positive
from hf_itp.functional.best_of_n import best_of_poisson_law
from hf_itp.strategies.base import Strategy


@dataclass(frozen=True)
class BestOfPoisson(Strategy):
    """
    Returns the best of the first `min(N, 1 + Poisson(rate))` candidates, in the order drawn.

    *When to use*: To follow the optimal trade-off between reward and KL closely by a continuous knob in place of the
    whole number n, for example when `rate` is tuned against gold rewards.

    *Cost*: N responses and N rewards per prompt; draw N of at least `rate + 4 * sqrt(rate)`, or the truncation at N
    shows.

    *Paper*: [2506.19248](https://huggingface.co/papers/2506.19248).

    Args:
        rate (`float`): Mean number of candidates beyond the first, positive.

    Example: `model.generate(**inputs, strategy="best_of_poisson", rate=8.0, num_candidates=24, ...)`

    ```python
    >>> import torch
    >>> BestOfPoisson(rate=1.0).probabilities(torch.tensor([0.2, 0.9]))
    tensor([0.3679, 0.6321], dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "best_of_poisson"

    rate: float

    def __post_init__(self) -> None:
        rate = check_positive("rate", self.rate, "Choose about the number of candidates you would give best-of-n.")
        object.__setattr__(self, "rate", rate)

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return best_of_poisson_law(rewards, self.rate)
