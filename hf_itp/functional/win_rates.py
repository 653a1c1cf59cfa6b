"""
Win rates from samples, with standard errors: a policy's rewards against the reference policy's, prompt by prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional.best_of_n import best_of_n_subsample_law
from hf_itp.functional.checks import check_rewards


@dataclass(frozen=True)
class Estimate:
    """
    A mean over prompts.

    Args:
        mean (`float`): The estimate.
        standard_error (`float`): Of the mean, prompts being independent; NaN for one prompt.
        num_prompts (`int`): How many.
    """

    mean: float
    standard_error: float
    num_prompts: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval, by the normal approximation."""
        return self.mean - 1.959964 * self.standard_error, self.mean + 1.959964 * self.standard_error

    @classmethod
    def over_prompts(cls, values: torch.Tensor) -> Estimate:
        """The mean of one value per prompt `(P,)`."""
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), error, len(values))


def win_rate(rewards: torch.Tensor, reference_rewards: torch.Tensor) -> Estimate:
    """
    Chance that a response of the policy beats one of the reference policy, a tie counting half.

    Unbiased; responses to one prompt are not independent, so the standard error is that over prompts.
    [InfAlign](https://huggingface.co/papers/2412.19792), definition of the win rate.

    Args:
        rewards (`torch.Tensor` of shape `(P, G)`): Of the policy's responses.
        reference_rewards (`torch.Tensor` of shape `(P, K)`): Of the reference policy's, drawn independently.

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
    Chance that the best of `n` responses of the policy beats the best of `n` of the reference policy, ties half.

    The average over all subsets of `n` of both samples, so unbiased whatever `G` and `K`.

    Args:
        rewards (`torch.Tensor` of shape `(P, G)`): Of the policy's responses, `G >= n`.
        reference_rewards (`torch.Tensor` of shape `(P, K)`): Of the reference policy's, `K >= n`.
        n (`int`): Of best-of-n.

    Raises:
        `ArgumentError`: If a prompt has fewer than `n` responses of either.
    """
    return Estimate.over_prompts(prompt_win_rates(rewards, reference_rewards, n))


def worst_of_n_win_rate(rewards: torch.Tensor, reference_rewards: torch.Tensor, n: int) -> Estimate:
    """The same as [`best_of_n_win_rate`] for the worst of `n` responses of each."""
    return Estimate.over_prompts(1 - prompt_win_rates(-rewards, -reference_rewards, n))


def prompt_win_rates(rewards: torch.Tensor, reference_rewards: torch.Tensor, n: int) -> torch.Tensor:
    """The estimate of [`best_of_n_win_rate`] for each prompt `(P,)`, float64."""
    ours, theirs = check_rewards(rewards), check_rewards(reference_rewards, "reference_rewards")
    if ours.dim() != 2 or theirs.dim() != 2 or len(ours) != len(theirs) or len(ours) == 0:
        raise ArgumentError(
            f"`rewards` and `reference_rewards` have to have shapes (P, G) and (P, K), but have {tuple(ours.shape)} "
            f"and {tuple(theirs.shape)}. Give each prompt its row in both."
        )
    fewest = min(ours.shape[1], theirs.shape[1])
    if not 1 <= n <= fewest:
        raise ArgumentError(
            f"`n` has to be between 1 and the number of responses per prompt ({fewest}), but is {n}. Draw more "
            "responses, or compare smaller n."
        )
    # A law over subsamples is a pure function of the order, so the n-subsets of both samples never have to be listed.
    mine = best_of_n_subsample_law(ours, n)
    theirs = theirs.sort(dim=-1).values
    law = best_of_n_subsample_law(theirs, n)
    cumulative = torch.cat([torch.zeros_like(law[:, :1]), law.cumsum(dim=-1)], dim=-1)
    below = cumulative.gather(1, torch.searchsorted(theirs, ours.contiguous()))
    not_above = cumulative.gather(1, torch.searchsorted(theirs, ours.contiguous(), right=True))
    return (mine * (below + not_above) / 2).sum(dim=-1)
