"""
Soft best-of-n: picks from a softmax over the rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from hf_itp.functional.best_of_n import check_temperature, soft_best_of_n_law
from hf_itp.strategies.base import Strategy, checked


@dataclass(frozen=True)
class SoftBestOfN(Strategy):
    """
    Return a candidate with probability proportional to `exp(reward / reward_temperature)`.

    *When to use*: To approach, without training, the policy that KL-regularised RL reaches with
    `beta = reward_temperature`, or to keep variety among good responses. Every candidate keeps some probability, bad
    ones too; [`Pessimism`] cuts those off.

    *Cost*: N responses and N rewards per prompt.

    *Paper*: [Soft Best-of-n Sampling](https://huggingface.co/papers/2505.03156): the law tends to the tilted policy at
    rate O(1/N) in KL.

    Args:
        reward_temperature (`float`): In units of reward, positive. Small is best-of-n, large is plain sampling. No
            value suits every reward scale, so there is no default. `temperature`, beside it, is the policy's.

    Example: `model.generate(**inputs, strategy="soft_best_of_n", reward_temperature=0.5, reward_model=reward_model)`

    ```python
    >>> import torch
    >>> law = SoftBestOfN(reward_temperature=0.5).probabilities(torch.tensor([0.0, 1.0]))
    >>> law[1] / law[0]  # exp(1 / 0.5)
    tensor(7.3891, dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "soft_best_of_n"

    reward_temperature: float = checked(partial(check_temperature, name="reward_temperature"), formerly="temperature")

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        return soft_best_of_n_law(rewards, self.reward_temperature)
