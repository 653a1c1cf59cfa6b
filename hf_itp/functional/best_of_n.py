"""
Laws of best-of-n and its relatives, which pick by the order of the rewards or tilt by their size.

Each takes finite rewards `(..., N)` and returns the exact law given the pool: float64 of the same shape, summing to 1
over the last dimension. Candidates of equal reward share equally what their ranks receive.
"""

from __future__ import annotations

import math

import torch

from hf_itp.checks import check_number, check_positive, check_rewards


def best_of_n_law(rewards: torch.Tensor) -> torch.Tensor:
    """
    Return the law of best-of-n: all mass on the highest reward.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1.

    Examples:

    ```python
    >>> import torch
    >>> best_of_n_law(torch.tensor([0.2, 0.7, 0.7]))
    tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    best = (rewards == rewards.amax(dim=-1, keepdim=True)).to(torch.float64)
    return best / best.sum(dim=-1, keepdim=True)


def worst_of_n_law(rewards: torch.Tensor) -> torch.Tensor:
    """
    Return the law of worst-of-n, the attacker's best-of-n: all mass on the lowest reward.

    Takes and returns what [`best_of_n_law`] does.

    Examples:

    ```python
    >>> import torch
    >>> rewards = torch.tensor([0.2, 0.7, 0.7])
    >>> worst_of_n_law(rewards).tolist(), worst_of_n_law(-rewards).tolist()
    ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])

    ```
    """
    return best_of_n_law(-check_rewards(rewards))


def soft_best_of_n_law(rewards: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""
    Return the law of soft best-of-n: \\( p_i \propto \exp(r_i / \tau) \\).

    From [Soft Best-of-n Sampling](https://huggingface.co/papers/2505.03156).

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
        temperature (`float`): \\( \tau \\), in units of reward. Small is best-of-n, large is plain sampling.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1. Equal rewards get equal ones.

    Raises:
        `ValueError`: If `temperature` is not positive.

    Examples:

    ```python
    >>> import torch
    >>> soft_best_of_n_law(torch.tensor([0.0, 0.6931472]), temperature=1.0)
    tensor([0.3333, 0.6667], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    # The best is at 0 before the division, so that a tiny temperature only overflows to -inf.
    return ((rewards - rewards.amax(dim=-1, keepdim=True)) / check_temperature(temperature)).softmax(dim=-1)


def check_temperature(temperature: float) -> int | float:
    """Return the temperature as a plain number if it is positive."""
    return check_positive("temperature", temperature, "Choose a temperature on the scale of the rewards.")


def top_quantile_law(rewards: torch.Tensor, multiplier: float) -> torch.Tensor:
    r"""
    Return the law of a uniform pick among the best \\( \lceil N / m \rceil \\), ties at the edge broken at random.

    Top-quantile best-of-n of [2603.05739](https://huggingface.co/papers/2603.05739).

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
        multiplier (`float`): `m`, at least 1. No candidate gets more than `m / N`, up to rounding of `N / m`.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1.

    Raises:
        `ValueError`: If `multiplier` is below 1.

    Examples:

    ```python
    >>> import torch
    >>> top_quantile_law(torch.tensor([0.9, 0.5, 0.5, 0.1]), multiplier=2)
    tensor([0.5000, 0.2500, 0.2500, 0.0000], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    size = rewards.shape[-1]
    count = top_count(size, multiplier)
    edge = rewards.kthvalue(size - count + 1, dim=-1, keepdim=True).values
    above, at_edge = rewards > edge, rewards == edge
    places_left = count - above.sum(dim=-1, keepdim=True)
    share = places_left / at_edge.sum(dim=-1, keepdim=True).to(torch.float64)
    return torch.where(at_edge, share, above.to(torch.float64)) / count


def top_count(num_candidates: int, multiplier: float) -> int:
    """Return how many of the candidates are the best `1 / multiplier`: at least one."""
    # A quotient such as 10 / (10 / 3) is slightly above the whole number that was meant.
    return max(1, math.ceil(num_candidates / check_multiplier(multiplier) * (1 - 1e-12)))


def check_multiplier(multiplier: float) -> int | float:
    """Return the multiplier as a plain number if it is finite and at least 1."""
    remedy = "Choose at least 1, which is plain sampling; 4 picks from the best quarter."
    return check_number("multiplier", multiplier, remedy, "at least 1", lambda multiplier: multiplier >= 1)


def best_of_poisson_law(rewards: torch.Tensor, rate: float) -> torch.Tensor:
    r"""
    Return the law of best-of-n over the first \\( \min(N, 1 + \mathrm{Poisson}(\mu)) \\) candidates of the pool.

    Best-of-Poisson of [2506.19248](https://huggingface.co/papers/2506.19248), truncated at the pool. The sum over the
    number of candidates is exact, in O(N log N): a candidate wins for exactly those numbers at which its reward is the
    record.

    Args:
        rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates, in the order drawn.
        rate (`float`): \\( \mu \\), the mean number of candidates beyond the first.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1. They depend on the order drawn.

    Raises:
        `ValueError`: If `rate` is not positive.

    Examples:

    ```python
    >>> import torch
    >>> best_of_poisson_law(torch.tensor([0.5, 0.9]), rate=0.6931472)  # one candidate half of the time
    tensor([0.5000, 0.5000], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    rate = check_rate(rate)
    records = rewards.cummax(dim=-1).values  # of the first n candidates
    sets_record = rewards == records  # the best, or among the best, of those up to itself
    winners = sets_record.cumsum(dim=-1)
    first, last = _runs(records)  # of the n with the same record
    winners -= winners.gather(-1, first) - 1  # how many share the record of the first n
    per_winner = _truncated_poisson(rewards.shape[-1], rate).to(rewards.device) / winners
    up_to = torch.nn.functional.pad(per_winner.cumsum(dim=-1), (1, 0))
    return up_to.gather(-1, last).sub_(up_to[..., :-1]).mul_(sets_record)


def check_rate(rate: float) -> int | float:
    """Return the rate as a plain number if it is positive."""
    return check_positive("rate", rate, "Choose about the number of candidates you would give best-of-n.")


def _runs(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the run of equal neighbours of each entry begins, and one past where it ends: `(..., N)` each."""
    size = values.shape[-1]
    positions = torch.arange(size, device=values.device)
    begins = torch.nn.functional.pad(values[..., 1:] != values[..., :-1], (1, 0), value=True)
    first = (begins * positions).cummax(dim=-1).values
    following = torch.nn.functional.pad(torch.where(begins, positions, size)[..., 1:], (0, 1), value=size)
    return first, following.flip(-1).cummin(dim=-1).values.flip(-1)


def _truncated_poisson(size: int, rate: float) -> torch.Tensor:
    """Return the probabilities that `min(size, 1 + Poisson(rate))` is 1, 2, ..., `size`."""
    counts = torch.arange(size, dtype=torch.float64)
    mean = torch.tensor(rate, dtype=torch.float64)
    mass = (torch.xlogy(counts, mean) - mean - torch.lgamma(counts + 1)).exp()
    if size == 1:
        return torch.ones_like(mass)
    mass[-1] = torch.special.gammainc(counts[-1], mean)  # P(Poisson(rate) >= size - 1)
    return mass / mass.sum()
