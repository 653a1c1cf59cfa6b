r"""
Estimates of \\( KL(\pi \| \pi_{ref}) \\) over whole responses, from log-probabilities of responses the policy drew.
"""

from __future__ import annotations

import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional.win_rates import Estimate


def sequence_log_ratios(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    r"""
    \\( \log \pi(y|x) - \log \pi_{ref}(y|x) \\) of each response.

    Args:
        logprobs, ref_logprobs (`torch.Tensor` of shape `(..., T)`): Of each token under both policies.
        mask (`torch.Tensor` of shape `(..., T)`): Which tokens belong to the response, its end token included.
    """
    if not logprobs.shape == ref_logprobs.shape == mask.shape:
        raise ArgumentError(
            f"`logprobs`, `ref_logprobs` and `mask` have to have one shape, but have {tuple(logprobs.shape)}, "
            f"{tuple(ref_logprobs.shape)} and {tuple(mask.shape)}. Pad all three alike."
        )
    difference = (logprobs.double() - ref_logprobs.double()).masked_fill(~mask.bool(), 0.0)
    return difference.sum(dim=-1)


def kl_k1(log_ratios: torch.Tensor) -> Estimate:
    """
    The mean log-ratio of responses drawn from the policy: unbiased, may be negative.

    Args:
        log_ratios (`torch.Tensor` of shape `(P,)` or `(P, G)`): One row per prompt.

    Examples:

    ```python
    >>> import torch
    >>> kl_k1(torch.tensor([0.5, -0.25])).mean
    0.125

    ```
    """
    return Estimate.over_prompts(_per_prompt(log_ratios.double()))


def kl_k3(log_ratios: torch.Tensor) -> Estimate:
    r"""
    The mean of \\( e^{-x} - 1 + x \\) over log-ratios `x`: unbiased too, never negative, and with less variance where
    the policies are close; heavy tails where they are not.

    Args:
        log_ratios (`torch.Tensor` of shape `(P,)` or `(P, G)`): One row per prompt.

    Examples:

    ```python
    >>> import torch
    >>> kl_k3(torch.tensor([0.0, 0.0])).mean
    0.0

    ```
    """
    x = log_ratios.double()
    return Estimate.over_prompts(_per_prompt(torch.expm1(-x) + x))


def _per_prompt(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values
