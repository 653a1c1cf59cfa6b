"""
Soft best-of-n: picks from a softmax over the rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import check_temperature, soft_best_of_n_law
from hf_itp.strategies.base import Strategy, checked


@dataclass(frozen=True)
class SoftBestOfN(Strategy):
    """
    Return a candidate with probability proportional to `exp(reward / temperature)`.

    *When to use*: To approach, without training, the policy that KL-regularised RL reaches with `beta = temperature`,
    or to keep variety among good responses. Every candidate keeps some probability, bad ones too; [`Pessimism`] cuts
    those off.

    *Cost*: N responses and N rewards per prompt.

    *Paper*: [Soft Best-of-n Sampling](https://huggingface.co/papers/2505.03156): the law tends to the tilted policy at
    rate O(1/N) in KL.

    Args:
        temperature (`float`): In units of reward, positive. Small is best-of-n, large is plain sampling. No value
            suits every reward scale, so there is no default.

    Example: `model.generate(**inputs, strategy=SoftBestOfN(temperature=0.5), reward_model=reward_model)`: an object,
    because `temperature=` beside a name can be read as the policy's own.

    ```python
    >>> import torch
    >>> law = SoftBestOfN(temperature=0.5).probabilities(torch.tensor([0.0, 1.0]))
    >>> law[1] / law[0]  # exp(1 / 0.5)
    tensor(7.3891, dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "soft_best_of_n"

    temperature: float = checked(check_temperature)

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return soft_best_of_n_law(rewards, self.temperature)
