"""
The trade-off of a transform in a world of finitely many responses, with known probabilities and rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_itp.checks import check_rewards
from hf_itp.errors import ArgumentError
from hf_itp.functional.transforms import Transform, get_transform
from hf_itp.functional.transforms.base import check_beta


@dataclass(frozen=True)
class FiniteTradeoff:
    """
    Compare a policy with the reference policy over the same finitely many responses.

    Args:
        reference (`torch.Tensor` of shape `(R,)`): Probability of each response under the reference policy.
        rewards (`torch.Tensor` of shape `(R,)`): Rewards, ties allowed.
        policy (`torch.Tensor` of shape `(R,)`): Probability of each response under the policy.
    """

    reference: torch.Tensor
    rewards: torch.Tensor
    policy: torch.Tensor

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence from the reference policy, in nats."""
        seen = self.policy > 0
        return float((self.policy * (self.policy.log() - self.reference.log()))[seen].sum())

    @property
    def win_rate(self) -> float:
        """Chance that a response of the policy beats one of the reference policy, ties half."""
        return self.best_of_n_win_rate(1)

    def best_of_n_win_rate(self, n: int) -> float:
        """Return the same for the best of `n` responses of each."""
        return self._win_rate(n, self.rewards)

    def worst_of_n_win_rate(self, n: int) -> float:
        """Return the same for the worst of `n` responses of each."""
        # With all signs turned, the worst of n wins where the best of n loses.
        return 1 - self._win_rate(n, -self.rewards)

    def _win_rate(self, n: int, rewards: torch.Tensor) -> float:
        ours, theirs = (_cumulative(law, rewards).pow(n) for law in (self.policy, self.reference))
        none = torch.zeros(1, dtype=torch.float64)
        ours, below = torch.cat([none, ours]).diff(), torch.cat([none, theirs])
        return float((ours * (below[:-1] + below[1:]) / 2).sum())


def finite_tradeoff(
    reference: torch.Tensor, rewards: torch.Tensor, transform: str | Transform, beta: float, **fields: float
) -> FiniteTradeoff:
    r"""
    Return the exact optimum \\( \pi \propto \pi_{ref} e^{\Phi(C) / \beta} \\) over finitely many responses.

    `C` is the calibrated reward, a tie counting one half.

    Args:
        reference (`torch.Tensor` of shape `(R,)`): Probabilities under the reference policy, of sum 1.
        rewards (`torch.Tensor` of shape `(R,)`): Rewards.
        transform (`str` or [`~functional.transforms.Transform`]): What [`~functional.transforms.get_transform`] takes.
        beta (`float`): KL strength, in units of the transform.
        fields: Of a transform given by name.

    Raises:
        `ArgumentError`: If `beta` is not positive, or `reference` is not one probability per reward.

    Examples:

    ```python
    >>> import torch
    >>> even = torch.full((4,), 0.25)
    >>> world = finite_tradeoff(even, torch.tensor([0.0, 1.0, 2.0, 3.0]), "identity", beta=0.25)
    >>> round(world.win_rate, 4), round(world.best_of_n_win_rate(4), 4)
    (0.7482, 0.6506)

    ```
    """
    beta = check_beta(beta)
    rewards, reference = check_rewards(rewards), torch.as_tensor(reference, dtype=torch.float64)
    if reference.shape != rewards.shape or rewards.dim() != 1 or not bool((reference >= 0).all()):
        raise ArgumentError(
            f"`reference` must hold one probability per reward ({tuple(rewards.shape)}), got shape "
            f"{tuple(reference.shape)} or a negative value. Pass the law the responses are drawn from."
        )
    if abs(float(reference.sum()) - 1) > 1e-6:
        raise ArgumentError(
            f"`reference` must sum to 1, got a sum of {float(reference.sum())}. Give every response its probability."
        )
    exponents = get_transform(transform, **fields)(calibrated(reference, rewards)) / beta
    policy = (reference.log() + exponents).softmax(dim=-1)
    return FiniteTradeoff(reference, rewards, policy)


def calibrated(reference: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Return the calibrated reward of each response: the reference mass below it and half of the mass at it."""
    levels, index = rewards.unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, reference.double())
    return (mass.cumsum(0) - mass / 2)[index]


def _cumulative(law: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    levels, index = rewards.unique(return_inverse=True)
    return torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, law).cumsum(0).clamp(max=1.0)
