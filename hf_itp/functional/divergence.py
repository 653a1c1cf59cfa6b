r"""
Estimates of \\( KL(\pi \| \pi_{ref}) \\) over whole responses, from responses drawn by the policy. All in nats.
"""

from __future__ import annotations

import torch

from hf_itp.arrays import as_floats, as_tensor
from hf_itp.errors import ArgumentError
from hf_itp.functional.win_rates import Estimate


def sequence_log_ratios(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    r"""
    Return \\( \log \pi(y|x) - \log \pi_{ref}(y|x) \\) of each response, in nats.

    Args:
        logprobs, ref_logprobs (`torch.Tensor` of shape `(..., T)`): Log-probability of each token under both policies.
        mask (`torch.Tensor` of shape `(..., T)`): Which tokens belong to the response, its end token included.

    Returns:
        `torch.Tensor` of shape `(...)`, float64.

    Raises:
        `ArgumentError`: If the three shapes differ.
    """
    logprobs, ref_logprobs = as_floats(logprobs, "logprobs"), as_floats(ref_logprobs, "ref_logprobs")
    mask = as_tensor(mask, "mask")
    if not logprobs.shape == ref_logprobs.shape == mask.shape:
        raise ArgumentError(
            f"`logprobs`, `ref_logprobs` and `mask` must have one shape, got {tuple(logprobs.shape)}, "
            f"{tuple(ref_logprobs.shape)} and {tuple(mask.shape)}. Pad all three alike."
        )
    difference = (logprobs.double() - ref_logprobs.double()).masked_fill(~mask.bool(), 0.0)
    return difference.sum(dim=-1)


def kl_k1(log_ratios: torch.Tensor) -> Estimate:
    """
    Estimate the KL by the mean log-ratio of responses drawn from the policy: unbiased, may be negative.

    Args:
        log_ratios (`torch.Tensor` of shape `(P,)` or `(P, G)`): One row per prompt.

    Examples:

    ```python
    >>> import torch
    >>> kl_k1(torch.tensor([0.5, -0.25])).mean
    0.125

    ```
    """
    return Estimate.over_prompts(_per_prompt(as_floats(log_ratios, "log_ratios").double()))


def kl_k3(log_ratios: torch.Tensor) -> Estimate:
    r"""
    Estimate the KL by the mean of \\( e^{-x} - 1 + x \\) over log-ratios `x`: unbiased, never negative.

    Its variance is lower than that of [`kl_k1`] for policies that are close; for others it has heavy tails.

    Args:
        log_ratios (`torch.Tensor` of shape `(P,)` or `(P, G)`): One row per prompt.

    Examples:

    ```python
    >>> import torch
    >>> kl_k3(torch.tensor([0.0, 0.0])).mean
    0.0

    ```
    """
    x = as_floats(log_ratios, "log_ratios").double()
    return Estimate.over_prompts(_per_prompt(torch.expm1(-x) + x))


def _per_prompt(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values
