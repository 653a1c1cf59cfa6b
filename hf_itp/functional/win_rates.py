"""
Win rates of a policy against the reference policy from sampled rewards, prompt by prompt, with standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_itp.checks import check_count, check_rewards
from hf_itp.errors import ArgumentError
from hf_itp.functional.subsamples import best_of_n_subsample_law


@dataclass(frozen=True)
class Estimate:
    """
    Hold a mean over prompts and its standard error.

    Args:
        mean (`float`): The estimate.
        standard_error (`float`): Of the mean over independent prompts; NaN for one prompt.
        num_prompts (`int`): Number of prompts.
    """

    mean: float
    standard_error: float
    num_prompts: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval by Student's law, which allows for a spread estimated from few prompts."""
        reach = math.nan if self.num_prompts < 2 else student_quantile(self.num_prompts - 1) * self.standard_error
        return self.mean - reach, self.mean + reach

    @classmethod
    def over_prompts(cls, values: torch.Tensor) -> Estimate:
        """Return the estimate from one value per prompt `(P,)`."""
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), error, len(values))


def student_quantile(degrees: int) -> float:
    """
    Return the 97.5 % quantile of Student's law with so many degrees of freedom.

    Examples:

    ```python
    >>> [round(student_quantile(degrees), 3) for degrees in (1, 3, 10, 1000)]
    [12.706, 3.182, 2.228, 1.962]

    ```
    """
    if degrees > 100:
        z = 1.959963984540054
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    low, high = 0.0, math.pi / 2  # the angle whose tangent is t / sqrt(degrees), in which the law is a finite sum
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, degrees) < 0.95 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _student_mass(angle: float, degrees: int) -> float:
    """Return the chance of a smaller absolute value: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return (2 / math.pi) * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def win_rate(rewards: torch.Tensor, reference_rewards: torch.Tensor) -> Estimate:
    """
    Estimate the chance that a response of the policy beats one of the reference policy, a tie counting one half.

    Unbiased. Responses to one prompt are not independent, so the standard error is that over prompts. From
    [InfAlign](https://huggingface.co/papers/2412.19792), definition of the win rate.

    Args:
        rewards (`torch.Tensor` of shape `(P, G)`): Of the policy's responses.
        reference_rewards (`torch.Tensor` of shape `(P, K)`): Of the reference policy's, drawn independently.

    Raises:
        `ValueError`: If the numbers of prompts differ or are 0, or a reward is not finite.

    Examples:

    ```python
    >>> import torch
    >>> win_rate(torch.tensor([[2.0], [0.5]]), torch.tensor([[1.0, 3.0], [0.0, 1.0]])).mean
    0.5

    ```
    """
    return best_of_n_win_rate(rewards, reference_rewards, 1)


def best_of_n_win_rate(rewards: torch.Tensor, reference_rewards: torch.Tensor, n: int) -> Estimate:
    """
    Estimate the chance that the best of `n` responses of the policy beats the best of `n` of the reference policy.

    A tie counts one half. Unbiased for any `G` and `K`: the average over all subsets of `n` of both samples.

    Args:
        rewards (`torch.Tensor` of shape `(P, G)`): Of the policy's responses, `G >= n`.
        reference_rewards (`torch.Tensor` of shape `(P, K)`): Of the reference policy's, `K >= n`.
        n (`int`): Of best-of-n.

    Raises:
        `ArgumentError`: If a prompt has fewer than `n` responses of either, or the numbers of prompts differ.
    """
    return Estimate.over_prompts(prompt_win_rates(rewards, reference_rewards, n))


def worst_of_n_win_rate(rewards: torch.Tensor, reference_rewards: torch.Tensor, n: int) -> Estimate:
    """Estimate the same as [`best_of_n_win_rate`] for the worst of `n` responses of each."""
    return Estimate.over_prompts(1 - prompt_win_rates(-rewards, -reference_rewards, n))


def prompt_win_rates(rewards: torch.Tensor, reference_rewards: torch.Tensor, n: int) -> torch.Tensor:
    """Return the estimate of [`best_of_n_win_rate`] for each prompt `(P,)`, float64."""
    ours, theirs = check_rewards(rewards), check_rewards(reference_rewards, "reference_rewards")
    if ours.dim() != 2 or theirs.dim() != 2 or len(ours) != len(theirs) or len(ours) == 0:
        raise ArgumentError(
            f"`rewards` and `reference_rewards` must have shapes (P, G) and (P, K), got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}. Give each prompt its row in both."
        )
    fewest = min(ours.shape[1], theirs.shape[1])
    n = check_count("n", n, 1, "Draw more responses or compare a smaller n.", fewest, "responses per prompt")
    # The law over subsamples depends only on the order, so the n-subsets of both samples need no enumeration.
    mine = best_of_n_subsample_law(ours, n)
    theirs = theirs.sort(dim=-1).values
    law = best_of_n_subsample_law(theirs, n)
    cumulative = torch.cat([torch.zeros_like(law[:, :1]), law.cumsum(dim=-1)], dim=-1)
    below = cumulative.gather(1, torch.searchsorted(theirs, ours.contiguous()))
    not_above = cumulative.gather(1, torch.searchsorted(theirs, ours.contiguous(), right=True))
    return (mine * (below + not_above) / 2).sum(dim=-1)
