"""
Pessimism in closed form: the law over a pool that maximises the mean reward minus `beta` times its chi-squared
divergence from the policy. Knows nothing of how a response is drawn from that law.
"""

from __future__ import annotations

import torch

from hf_itp.checks import check_positive, check_rewards
from hf_itp.errors import ArgumentError


def check_beta(beta: float) -> int | float:
    """Return `beta` as a plain number if it is positive."""
    remedy = "Pass e.g. beta=0.1. Choose a beta on the scale of the rewards, for example a tenth of their spread."
    return check_positive("beta", beta, remedy)


def pessimism(rewards: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Return the weights of the candidates under pessimism, relative to plain sampling, and the normalizer.

    [Is Best-of-N the Best of Them?](https://huggingface.co/papers/2503.21878), steps 1 and 2 of
    InferenceTimePessimism: the maximiser of \\( E_\pi[r] - \beta D_{\chi^2}(\pi \| \pi_{ref}) \\) over the pool is

    $$ w_i = \max\left(\frac{r_i - \lambda}{\beta}, 0\right), \qquad \frac{1}{N} \sum_i w_i = 1, \qquad
    \lambda = \max_{1 \le k \le N} \frac{S_k - N \beta}{k} $$

    with \\( S_k \\) the sum of the `k` largest rewards. Adding a constant to the rewards adds it to the normalizer
    \\( \lambda \\) and keeps the weights. Scaling rewards and `beta` together keeps the weights too.

    Shapes: leading dimensions are prompts, the last one is the pool. Costs O(N log N) per pool.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
        beta (`float`): Regularization strength, in units of reward. For `beta` up to (best - second best reward) / N
            the weights are those of best-of-n; as it grows to infinity all tend to 1.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`, both float64: `weights (..., N)`, nonnegative with mean 1, so that
        `weights / N` is the selection law, and the `normalizer (...)`, between `mean(rewards) - beta` and
        `max(rewards) - beta`.

    Raises:
        `ValueError`: If `beta` is not positive or a reward is not finite.

    Examples:

    ```python
    >>> import torch
    >>> weights, normalizer = pessimism(torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3]), beta=0.1)
    >>> [round(weight, 4) for weight in weights.tolist()], round(normalizer.item(), 4)
    ([3.5, 1.5, 0.0, 0.0, 0.0], 0.65)

    ```
    """
    rewards = check_rewards(rewards)
    beta = check_beta(beta)
    best = rewards.amax(dim=-1, keepdim=True)  # (..., 1)
    # In units of beta below the best: exact under large offsets and safe for every beta. A gap may overflow to -inf,
    # which rightly puts it out of reach.
    gaps = (rewards - best) / beta  # (..., N), at most 0
    threshold = _threshold(gaps)  # (..., 1)
    return (gaps - threshold).clamp_min(0), (best + beta * threshold).squeeze(-1)


def _threshold(gaps: torch.Tensor) -> torch.Tensor:
    """Return the root of `mean(relu(gaps - root)) = 1`, of shape `(..., 1)`."""
    size = gaps.shape[-1]
    # The support is usually a small part of the pool, which topk finds several times faster than a sort.
    part = size if size <= 64 else size // 4
    top = gaps.topk(part, dim=-1).values
    counts = torch.arange(1, part + 1, dtype=gaps.dtype, device=gaps.device)
    threshold = ((top.cumsum(dim=-1) - size) / counts).amax(dim=-1, keepdim=True)
    if part < size:
        unsettled = (threshold < top[..., -1:]).squeeze(-1)  # the support may reach below the part
        if unsettled.any():
            threshold[unsettled] = _threshold_by_newton(gaps[unsettled], threshold[unsettled])
    return threshold


def _threshold_by_newton(gaps: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """
    Return the same for large supports, from a `start` at or below the root.

    The mean is convex in the root, so steps from below never overshoot, and the root is exact once the support no
    longer changes: a few passes over the pool, fewer than a sort takes.
    """
    size = gaps.shape[-1]
    threshold = torch.maximum(start, gaps.mean(dim=-1, keepdim=True) - 1)  # the root if all are in the support
    previous = None
    while True:
        above = gaps > threshold
        count = above.sum(dim=-1, keepdim=True)
        if previous is not None and torch.equal(count, previous):
            return threshold
        total = gaps.where(above, 0.0).sum(dim=-1, keepdim=True)
        # Never step back by rounding, or two supports could alternate for ever.
        threshold, previous = torch.maximum(threshold, (total - size) / count), count


def weights_beyond_pool(
    new_rewards: torch.Tensor, rewards: torch.Tensor, weights: torch.Tensor, beta: float
) -> torch.Tensor:
    r"""
    Return the weights \\( \max((r - \lambda) / \beta, 0) \\) of responses outside the pool that gave the normalizer.

    Step 4 of InferenceTimePessimism ([paper](https://huggingface.co/papers/2503.21878)). Computed from the best of the
    pool, \\( \lambda = \max_i r_i - \beta \max_i w_i \\), which keeps all digits under a tiny `beta`.

    Args:
        new_rewards (`torch.Tensor` of shape `(..., M)`): Rewards of the further responses.
        rewards (`torch.Tensor` of shape `(..., N)`): Rewards of the pool.
        weights (`torch.Tensor` of shape `(..., N)`): Its weights, from [`pessimism`].
        beta (`float`): The one [`pessimism`] was solved with.

    Returns:
        `torch.Tensor` of shape `(..., M)`, float64: Weights from 0 up. Their mean is 1 only in expectation.

    Examples:

    ```python
    >>> import torch
    >>> rewards = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    >>> weights, normalizer = pessimism(rewards, beta=0.5)
    >>> weights_beyond_pool(torch.tensor([1.5, 0.5, -1.0]), rewards, weights, beta=0.5)
    tensor([3., 1., 0.], dtype=torch.float64)

    ```
    """
    new_rewards, rewards = check_rewards(new_rewards), check_rewards(rewards)
    above_best = (new_rewards - rewards.amax(dim=-1, keepdim=True)) / beta
    return (weights.amax(dim=-1, keepdim=True) + above_best).clamp_min(0)


def beta_for_effective_sample_size(rewards: torch.Tensor, size: float | torch.Tensor) -> torch.Tensor:
    r"""
    Return the `beta` at which pessimism's law on a pool has a given effective sample size.

    The inverse of `effective_sample_size(pessimism(rewards, beta)[0] / N)`. While the `k` best are the support,
    \\( \sum_i p_i^2 = 1/k + V_k / (N \beta)^2 \\), where \\( V_k \\) sums their squared deviations from their mean.
    This is solved for `beta` at the `k` that applies.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
        size (`float` or `torch.Tensor` of shape `(...)`): Effective sample size, at least 1 and below `N`.

    Returns:
        `torch.Tensor` of shape `(...)`, float64: The largest such beta; 0 where more than `size` candidates tie
        for the best, because no beta concentrates the law further.

    Raises:
        `ValueError`: If `size` is not in `[1, N)`.

    Examples:

    ```python
    >>> import torch
    >>> rewards = torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3])
    >>> round(beta_for_effective_sample_size(rewards, 1 / (0.7**2 + 0.3**2)).item(), 6)
    0.1

    ```
    """
    rewards = check_rewards(rewards)
    num_candidates = rewards.shape[-1]
    size = torch.as_tensor(size, dtype=torch.float64, device=rewards.device).unsqueeze(-1)
    if not ((size >= 1) & (size < num_candidates)).all():
        raise ArgumentError(
            f"`size` must be at least 1 and below the number of candidates ({num_candidates}), got "
            f"{size.squeeze(-1).tolist()}. Ask for a size that a finite beta gives."
        )
    gaps = rewards.sort(dim=-1, descending=True).values
    gaps = gaps - gaps[..., :1]
    counts = torch.arange(1, num_candidates + 1, dtype=gaps.dtype, device=gaps.device)
    sums = gaps.cumsum(dim=-1)
    variations = (gaps.square().cumsum(dim=-1) - sums.square() / counts).clamp_min(0)  # V_k
    entries = sums - counts * gaps  # N beta at which the k-th best enters the support
    tied = entries <= 0  # in the support from the start
    sizes = torch.where(tied, counts, (1 / counts + variations / entries.square()).reciprocal())
    # A range of beta gives the size of the ties for the best; there the margin decides, not rounding.
    in_reach = tied | (sizes <= size * (1 + 1e-12))
    applies = torch.where(in_reach, counts, 1).amax(dim=-1, keepdim=True)  # the k that applies
    variation = variations.gather(-1, applies.long() - 1)
    excess = 1 / size - 1 / applies
    return torch.where(excess > 0, (variation / excess).sqrt() / num_candidates, 0).squeeze(-1)
