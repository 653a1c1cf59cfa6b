"""
Reference rewards of prompts without references, predicted from the reward model's features of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional.calibration import calibrate_rewards
from hf_itp.rewards import RewardFunction, RewardModel
from hf_itp.rewards.base import Prompt

_LEVELS = 32
_FOLDS = 5
_STRENGTHS = tuple(10.0**power for power in range(-3, 6))


class QuantilePredictor:
    r"""
    Predict the quantiles of a prompt's reference rewards, by ridge regression on the reward model's features.

    [`~QuantilePredictor.fit`] chooses the strength by cross-validation and reports the error on held-out prompts:
    `calibration_error`, the mean of $|\hat C(x, y) - C(x, y)|$ over their responses, and `baseline_error`, that of
    predicting the same quantiles for every prompt.

    Args:
        reward_model ([`RewardModel`]): Gives the features.
        mean, scale (`torch.Tensor` of shape `(D,)`): Standardize the features.
        weights (`torch.Tensor` of shape `(D + 1, Q)`): Weights of the regression, the constant last.
        calibration_error, baseline_error (`float`): On held-out prompts, between 0 and 0.5.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        mean: torch.Tensor,
        scale: torch.Tensor,
        weights: torch.Tensor,
        calibration_error: float,
        baseline_error: float,
    ):
        self._reward_model, self._mean, self._scale, self._weights = reward_model, mean, scale, weights
        self.calibration_error, self.baseline_error = calibration_error, baseline_error

    @classmethod
    def fit(cls, reward: RewardFunction, prompts: Sequence[Prompt], reference_rewards: torch.Tensor) -> Self:
        """
        Fit the regression.

        Args:
            reward ([`RewardModel`]): The model that gave the rewards.
            prompts: At least 10, of the kind to predict for.
            reference_rewards (`torch.Tensor` of shape `(P, K)`): Their reference rewards.

        Raises:
            `ArgumentError`: If the reward has no features, or there are too few prompts.
        """
        reward = cls.check(reward, prompts)
        features = reward.prompt_features(prompts).double()
        rewards = reference_rewards.double()
        targets = torch.quantile(rewards, _levels(), dim=-1).T.contiguous()  # (P, Q)
        folds = torch.arange(len(prompts)) % _FOLDS

        def error(strength: float) -> float:
            total = 0.0
            for fold in range(_FOLDS):
                mean, scale, weights = _ridge(features[folds != fold], targets[folds != fold], strength)
                predicted = _predict(features[folds == fold], mean, scale, weights)
                total += _error(predicted, rewards[folds == fold])
            return total / len(prompts)

        errors = {strength: error(strength) for strength in _STRENGTHS}
        best = min(errors, key=lambda strength: errors[strength])
        # Infinite strength predicts the mean quantiles of the other prompts.
        baseline = error(float("inf"))
        return cls(reward, *_ridge(features, targets, best), calibration_error=errors[best], baseline_error=baseline)

    @staticmethod
    def check(reward: RewardFunction, prompts: Sequence[Prompt]) -> RewardModel:
        """Raise the errors of [`fit`] before references are drawn; return the reward."""
        if not isinstance(reward, RewardModel):
            raise ArgumentError(
                f"`reward_model` must have features with `predict`, got {reward.name}. Leave `predict` out, or use a "
                "RewardModel."
            )
        if len(prompts) < 2 * _FOLDS:
            raise ArgumentError(
                f"`prompts` must hold at least {2 * _FOLDS} with `predict`, got {len(prompts)}. Add prompts, or leave "
                "`predict` out."
            )
        return reward

    def predict(self, prompts: Sequence[Prompt], num_reference: int) -> torch.Tensor:
        """Return predicted reference rewards `(n, num_reference)`, ascending, float32."""
        features = self._reward_model.prompt_features(prompts).double()
        quantiles = _predict(features, self._mean, self._scale, self._weights)
        return _spread(quantiles, num_reference).float()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a saved predictor."""
        return {
            "predictor.mean": self._mean,
            "predictor.scale": self._scale,
            "predictor.weights": self._weights,
        }

    def description(self) -> dict[str, Any]:
        """Return its errors on held-out prompts."""
        return {"calibration_error": self.calibration_error, "baseline_error": self.baseline_error}

    @classmethod
    def from_tensors(
        cls, reward: RewardFunction, tensors: dict[str, torch.Tensor], description: dict[str, Any]
    ) -> Self:
        """Restore a predictor from its [`tensors`] and [`description`]."""
        if not isinstance(reward, RewardModel):
            raise ArgumentError(
                f"`reward_model` must be the RewardModel the predictor was fitted with, got {reward.name}. Pass that "
                "one, or leave `reward_model` out."
            )
        mean, scale, weights = (tensors[f"predictor.{name}"] for name in ("mean", "scale", "weights"))
        return cls(reward, mean, scale, weights, **description)


def _levels() -> torch.Tensor:
    return (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS


def _ridge(
    features: torch.Tensor, targets: torch.Tensor, strength: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, scale = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    standard, center = (features - mean) / scale, targets.mean(dim=0)
    if strength == float("inf"):
        slopes = torch.zeros(features.shape[1], targets.shape[1], dtype=torch.float64)
    else:
        # In the space of the prompts, which are usually fewer than the features. The solution is the same.
        kernel = standard @ standard.T + strength * torch.eye(len(standard), dtype=torch.float64)
        slopes = standard.T @ torch.linalg.solve(kernel, targets - center)
    return mean, scale, torch.cat([slopes, center[None]])


def _predict(features: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # Sorted, since the quantiles of one law do not cross.
    return (((features - mean) / scale) @ weights[:-1] + weights[-1]).sort(dim=-1).values


def _spread(quantiles: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` values `(n, count)` with the given quantiles `(n, Q)`, interpolated linearly."""
    places = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * _LEVELS - 0.5).clamp(0, _LEVELS - 1)
    below = places.floor().long().clamp(max=_LEVELS - 2)
    share = places - below
    return torch.lerp(quantiles[:, below], quantiles[:, below + 1], share)


def _error(quantiles: torch.Tensor, rewards: torch.Tensor) -> float:
    """Sum over prompts the mean difference between predicted and true quantiles."""
    count = rewards.shape[-1]
    predicted = calibrate_rewards(rewards, _spread(quantiles, count))
    true = calibrate_rewards(rewards, rewards)
    return float((predicted - true).abs().mean(dim=-1).sum())
