"""
Laws of rejection sampling: which candidate is returned when each is accepted with its own probability.

Weights are relative to the law that proposals are drawn from, as [`pessimism`] returns them.
"""

from __future__ import annotations

import torch

from hf_itp.checks import check_rewards
from hf_itp.errors import ArgumentError
from hf_itp.functional.quadrature import gauss_legendre

# Entries of the largest intermediate tensor, 32 MB in float64.
_CHUNK = 2**22


def rejection_bound(
    rewards: torch.Tensor, weights: torch.Tensor, beta: float, reward_bound: float | None = None
) -> torch.Tensor:
    r"""
    Return the bound \\( M = (R_{max} - \lambda) / \beta \\) on the weights, by which rejection sampling divides them.

    Step 3 of InferenceTimePessimism ([paper](https://huggingface.co/papers/2503.21878)). Without `reward_bound` it is
    the largest weight in the pool, a departure from the paper: the best candidate is then accepted for certain.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Rewards of the pool.
        weights (`torch.Tensor` of shape `(..., N)`): Its weights, from [`pessimism`].
        beta (`float`): As for [`pessimism`].
        reward_bound (`float`, *optional*): The largest possible reward, \\( R_{max} \\).

    Returns:
        `torch.Tensor` of shape `(...)`, float64: Positive. A proposal from the policy is accepted with probability
        about `1 / M`.

    Raises:
        `ValueError`: If `reward_bound` does not exceed the normalizer of every pool.

    Examples:

    ```python
    >>> import torch
    >>> rewards, weights = torch.tensor([1.0, 0.8, 0.5]), torch.tensor([2.0, 1.0, 0.0])
    >>> rejection_bound(rewards, weights, beta=0.2).item()
    2.0
    >>> round(rejection_bound(rewards, weights, beta=0.2, reward_bound=1.4).item(), 4)
    4.0

    ```
    """
    rewards = check_rewards(rewards)
    largest = weights.to(torch.float64).amax(dim=-1)
    if reward_bound is None:
        return largest
    best = rewards.amax(dim=-1)
    bound = largest + (reward_bound - best) / beta
    if not (bound > 0).all():
        normalizer = (best - beta * largest).max().item()
        raise ArgumentError(
            f"`reward_bound` must exceed the normalizer of every pool (up to {normalizer:.6g}), got {reward_bound}, "
            "so none can be accepted. Set it to the largest reward the reward model can give, or leave it out."
        )
    return bound


def acceptance_probabilities(weights: torch.Tensor, bound: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Return the probability \\( \min(w_i / M, 1) \\) of accepting each candidate when it is proposed.

    Args:
        weights (`torch.Tensor` of shape `(..., N)`): Nonnegative weights.
        bound (`torch.Tensor` of shape `(...)`, *optional*): \\( M \\), positive. Defaults to the largest weight.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64, in `[0, 1]`. Their mean over a pool is the acceptance rate.

    Examples:

    ```python
    >>> import torch
    >>> acceptance_probabilities(torch.tensor([3.0, 1.5, 0.0]), torch.tensor(2.0))
    tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)

    ```
    """
    weights = check_rewards(weights, "weights")
    limit = (weights.amax(dim=-1) if bound is None else bound.to(weights)).unsqueeze(-1)
    # Compared first, so that an infinite weight under an infinite bound is accepted, not NaN.
    return torch.where(weights >= limit, 1.0, weights / limit)


def rejection_law(weights: torch.Tensor, bound: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Return the law of the first accepted candidate when proposals are drawn from the pool with replacement.

    \\( p_i = \min(w_i, M) / \sum_j \min(w_j, M) \\): exactly `weights / N` unless the bound clips a weight.

    Args:
        weights (`torch.Tensor` of shape `(..., N)`): Nonnegative weights, not all zero.
        bound (`torch.Tensor` of shape `(...)`, *optional*): \\( M \\), positive. By default nothing is clipped.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64: Probabilities of sum 1.

    Examples:

    ```python
    >>> import torch
    >>> rejection_law(torch.tensor([3.0, 1.0, 0.0]))
    tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    >>> rejection_law(torch.tensor([3.0, 1.0, 0.0]), torch.tensor(1.0))
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)

    ```
    """
    weights = check_rewards(weights, "weights")
    if bound is not None:
        weights = weights.minimum(bound.to(weights).unsqueeze(-1))
    return weights / weights.sum(dim=-1, keepdim=True)


def first_accept_law(acceptance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Return the law of the first accepted proposal when each is tried once, in the given order:
    \\( P_i = p_i \prod_{j<i} (1 - p_j) \\).

    Steps 4 and 5 of InferenceTimePessimism ([paper](https://huggingface.co/papers/2503.21878)).

    Args:
        acceptance (`torch.Tensor` of shape `(..., N)`): Acceptance probabilities of the proposals, in order.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`, float64: `law (..., N)`, and the probability `fallback (...)` that none is
        accepted; together they sum to 1.

    Examples:

    ```python
    >>> import torch
    >>> first_accept_law(torch.tensor([0.5, 0.5]))
    (tensor([0.5000, 0.2500], dtype=torch.float64), tensor(0.2500, dtype=torch.float64))

    ```
    """
    acceptance = _check_acceptance(acceptance)
    start = acceptance.new_ones((*acceptance.shape[:-1], 1))
    reached = torch.cat([start, (1 - acceptance).cumprod(dim=-1)], dim=-1)  # (..., N + 1)
    return acceptance * reached[..., :-1], reached[..., -1]


def average_first_accept_law(acceptance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Return the law of [`first_accept_law`] averaged over all orders of the proposals, in the same form.

    \\( P_i = p_i \int_0^1 \prod_{j \ne i} (1 - p_j s) ds \\). With `m` candidates of positive acceptance probability
    the integrand is a polynomial of degree `m - 1`, so Gauss-Legendre quadrature on `ceil(m / 2)` nodes is exact. This
    is the law of the paper's loop on one shared pool; it puts more mass on the top than `weights / N`.

    Examples:

    ```python
    >>> import torch
    >>> law, fallback = average_first_accept_law(torch.tensor([1.0, 0.5]))
    >>> law
    tensor([0.7500, 0.2500], dtype=torch.float64)

    ```
    """
    acceptance = _check_acceptance(acceptance)
    size = acceptance.shape[-1]
    rows = acceptance.reshape(-1, size)
    degree = int((rows > 0).sum(dim=-1).max()) if rows.numel() else 0
    nodes, weights = (part.to(rows.device) for part in gauss_legendre(max(1, (degree + 1) // 2)))
    nodes_at_once = max(1, min(len(nodes), _CHUNK // size))
    rows_at_once = max(1, _CHUNK // (size * nodes_at_once))
    law = torch.zeros_like(rows)
    for some_rows, out in zip(rows.split(rows_at_once), law.split(rows_at_once), strict=True):
        for s, weight in zip(nodes.split(nodes_at_once), weights.split(nodes_at_once), strict=True):
            log_passed = torch.log1p(-some_rows.unsqueeze(1) * s.unsqueeze(-1))  # (rows, nodes, N)
            others_passed = (log_passed.sum(dim=-1, keepdim=True) - log_passed).exp_()
            out += torch.einsum("m,bmn->bn", weight, others_passed)
    return (law * rows).reshape(acceptance.shape), (1 - acceptance).prod(dim=-1)


def no_acceptance_probability(acceptance_rate: torch.Tensor, num_proposals: int) -> torch.Tensor:
    r"""
    Return the probability \\( (1 - a)^n \\) that none of `n` independent proposals is accepted.

    Args:
        acceptance_rate (`torch.Tensor` of shape `(...)`): Mean acceptance probability `a` of one proposal.
        num_proposals (`int`): How many are drawn.

    Returns:
        `torch.Tensor` of shape `(...)`. With `a = 1 / M` it is at most `exp(-n / M)`.

    Examples:

    ```python
    >>> import torch
    >>> no_acceptance_probability(torch.tensor(0.5, dtype=torch.float64), 3)
    tensor(0.1250, dtype=torch.float64)

    ```
    """
    return (1 - acceptance_rate).pow(num_proposals)


def _check_acceptance(acceptance: torch.Tensor) -> torch.Tensor:
    if isinstance(acceptance, torch.Tensor) and acceptance.dim() > 0 and acceptance.shape[-1] == 0:
        return acceptance.to(torch.float64)  # no proposals: the fallback has all the mass
    acceptance = check_rewards(acceptance, "acceptance")
    if not ((acceptance >= 0) & (acceptance <= 1)).all():
        raise ArgumentError(
            f"`acceptance` must lie in [0, 1], got {acceptance.min().item():.6g} to {acceptance.max().item():.6g}. "
            "Divide the weights by their bound with `acceptance_probabilities`."
        )
    return acceptance
