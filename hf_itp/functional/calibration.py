"""
Calibrated rewards: the quantile of a reward among those of reference responses to the same prompt.

They mean the same for every prompt and reward model. Knows nothing of where the reference rewards come from.
"""

from __future__ import annotations

import torch

from hf_itp.arrays import as_tensor
from hf_itp.checks import check_rewards, check_same_prompts


def calibrate_rewards(rewards: torch.Tensor, reference_rewards: torch.Tensor) -> torch.Tensor:
    r"""
    Return the quantile of each reward among the rewards of reference responses to the same prompt.

    Empirical calibrated reward of [InfAlign](https://huggingface.co/papers/2412.19792); a tie counts one half:

    $$ \hat{C}(x, y) = \frac{1}{K} \sum_k \mathbb{1}[r(x, y) > r(x, z_k)]
    + \tfrac{1}{2} \mathbb{1}[r(x, y) = r(x, z_k)] $$

    Shapes: `N` responses and `K` reference responses per prompt. Costs O((N + K) log K) per prompt; no `N x K` table.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`):
            Raw rewards of the responses to calibrate.
        reference_rewards (`torch.Tensor` of shape `(..., K)`):
            Raw rewards, under the same reward model, of responses sampled from the reference policy.

    Returns:
        `torch.Tensor` of shape `(..., N)`: Quantiles in `[0, 1]`, unchanged by any strictly increasing map of the raw
        reward. float64 for float64 rewards, float32 for all others. The standard error of each is at most
        `0.5 / sqrt(K)`.

    Raises:
        `ValueError`: If the numbers of prompts differ, `K` is 0, or a reward is not finite.

    Examples:

    ```python
    >>> import torch
    >>> calibrate_rewards(torch.tensor([[-5.0, 1.0, 9.0]]), torch.tensor([[0.0, 1.0, 1.0, 2.0]]))
    tensor([[0.0000, 0.5000, 1.0000]])

    ```
    """
    rewards = as_tensor(rewards, "rewards")
    exact = check_rewards(rewards).contiguous()  # searchsorted warns otherwise
    reference = check_rewards(reference_rewards, "reference_rewards")
    check_same_prompts(exact, "reference_rewards", reference)
    reference = reference.sort(dim=-1).values.to(exact.device)
    below = torch.searchsorted(reference, exact)
    not_above = torch.searchsorted(reference, exact, right=True)
    quantiles = (below + not_above).to(torch.float64) / (2 * reference.shape[-1])
    return quantiles if rewards.dtype == torch.float64 else quantiles.to(torch.float32)
