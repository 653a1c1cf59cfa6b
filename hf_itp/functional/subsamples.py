"""
Laws of a strategy whose candidates are a random subset of a larger pool: one pool replays every number of candidates.

Each takes finite rewards `(..., P)` of a pool and returns float64 of the same shape, summing to 1 over the last
dimension: the chance of each response to be returned when `n` of the pool are drawn at random, and one picked.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hf_itp.checks import check_count, check_rewards

Law = Callable[[torch.Tensor], torch.Tensor]
"""A strategy's law: rewards `(..., N)` in the order drawn to probabilities `(..., N)`."""

# Rewards of subsets that are held at once: 64 MB in float64.
_BLOCK = 8_000_000


def best_of_n_subsample_law(rewards: torch.Tensor, n: int) -> torch.Tensor:
    r"""
    Return the law of best-of-n when the `n` candidates are a random subset of a pool of `P`.

    The `i`-th smallest of the pool is the best of the subset with probability
    \\( \binom{i-1}{n-1} / \binom{P}{n} \\): one pool gives the whole curve of best-of-n over `n`, without replicates.

    Args:
        rewards (`torch.Tensor` of shape `(..., P)`): Finite rewards of the pool.
        n (`int`): Size of the subset, from 1 to `P`.

    Returns:
        `torch.Tensor` of shape `(..., P)`, float64: Probabilities that sum to 1.

    Raises:
        `ValueError`: If `n` is not an integer from 1 to `P`.

    Examples:

    ```python
    >>> import torch
    >>> best_of_n_subsample_law(torch.tensor([3.0, 1.0, 2.0]), n=2)
    tensor([0.6667, 0.0000, 0.3333], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    size = rewards.shape[-1]
    n = check_count("n", n, 1, "Draw a larger pool or compare smaller subsets.", size, "the pool")
    # From the top rank down by ratios, which neither overflow nor cancel as binomial coefficients do.
    rank = torch.arange(size, 1, -1, dtype=torch.float64, device=rewards.device)
    ratios = ((rank - n) / (rank - 1)).clamp_min(0)
    first = torch.full((1,), n / size, dtype=torch.float64, device=rewards.device)
    mass = torch.cat([first, ratios]).cumprod(dim=0).flip(0)  # of the ranks, lowest reward first
    return _shared_among_ties(rewards, mass)


def worst_of_n_subsample_law(rewards: torch.Tensor, n: int) -> torch.Tensor:
    """
    Return the law of worst-of-n when the `n` candidates are a random subset of a pool of `P`.

    Takes and returns what [`best_of_n_subsample_law`] does.

    Examples:

    ```python
    >>> import torch
    >>> worst_of_n_subsample_law(torch.tensor([3.0, 1.0, 2.0]), n=2)
    tensor([0.0000, 0.6667, 0.3333], dtype=torch.float64)

    ```
    """
    return best_of_n_subsample_law(-check_rewards(rewards), n)


def top_ranks_subsample_law(rewards: torch.Tensor, n: int, count: int) -> torch.Tensor:
    r"""
    Return the law of a uniform pick among the best `count` of `n` candidates, a random subset of a pool of `P`.

    A response with `i - 1` better ones is picked if it is drawn and at most `count - 1` of those are:
    \\( \\frac{n}{P k} \\Pr[H(P - 1, i - 1, n - 1) < k] \\) with a hypergeometric \\( H \\).

    Args:
        rewards (`torch.Tensor` of shape `(..., P)`): Finite rewards of the pool.
        n (`int`): Size of the subset, from 1 to `P`.
        count (`int`): `k`, from 1 to `n`. 1 is best-of-n, `n` plain sampling.

    Returns:
        `torch.Tensor` of shape `(..., P)`, float64: Probabilities that sum to 1.

    Raises:
        `ValueError`: If `n` or `count` is out of range.

    Examples:

    ```python
    >>> import torch
    >>> top_ranks_subsample_law(torch.tensor([3.0, 1.0, 2.0, 0.0]), n=3, count=2)
    tensor([0.3750, 0.2500, 0.3750, 0.0000], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    size = rewards.shape[-1]
    n = check_count("n", n, 1, "Draw a larger pool or compare smaller subsets.", size, "the pool")
    count = check_count("count", count, 1, "Pick among at least one.", n, "the subset")
    mass = (n / size / count) * _at_most(count - 1, size - 1, n - 1).to(rewards.device)  # best rank first
    return _shared_among_ties(rewards, mass.flip(0))


def _at_most(most: int, size: int, drawn: int) -> torch.Tensor:
    """Return the chance that of `i` marked among `size`, `drawn` hold at most `most`, for i = 0 to `size`."""
    marked = torch.arange(size + 1, dtype=torch.float64)[:, None]
    held = torch.arange(min(most, drawn) + 1, dtype=torch.float64)
    rest = size - marked
    possible = (held <= marked) & (drawn - held <= rest)
    whole = _log_binomial(torch.tensor(size, dtype=torch.float64), torch.tensor(drawn, dtype=torch.float64))
    chances = (_log_binomial(marked, held) + _log_binomial(rest, drawn - held) - whole).exp()
    return chances.masked_fill(~possible, 0.0).sum(dim=-1).clamp(max=1.0)


def _log_binomial(n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    inside = (k >= 0) & (k <= n)
    k = torch.where(inside, k, torch.zeros_like(k))
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp_min(0) + 1)


def mean_subsample_law(
    law: Law,
    rewards: torch.Tensor,
    n: int,
    replicates: int = 1,
    generator: torch.Generator | None = None,
    replacement: bool = False,
) -> torch.Tensor:
    """
    Return the mean law of any strategy over random subsets of a pool.

    Every subset's law is exact; only the choice of subsets is random. Without replacement a shuffled pool is cut into
    as many disjoint subsets as fit, so responses are seen equally often, which makes the mean more accurate than that
    of independent subsets. A subset of the whole pool needs one replicate.

    Args:
        law (`Callable`): From rewards `(..., n)` in the order drawn to probabilities `(..., n)`.
        rewards (`torch.Tensor` of shape `(P, M)`): Finite rewards, a pool per prompt.
        n (`int`): Size of the subsets, from 1 to `M`.
        replicates (`int`, *optional*, defaults to 1): At least so many subsets per pool.
        generator (`torch.Generator`, *optional*): Source of randomness, by default torch's global one.
        replacement (`bool`, *optional*, defaults to `False`): Draw each candidate from the whole pool.

    Returns:
        `torch.Tensor` of shape `(P, M)`, float64: Probabilities that sum to 1.

    Raises:
        `ValueError`: If `n` or `replicates` is out of range.

    Examples:

    ```python
    >>> import torch
    >>> from hf_itp.functional import best_of_n_law
    >>> mean_subsample_law(best_of_n_law, torch.tensor([[3.0, 1.0, 2.0]]), n=3)
    tensor([[1., 0., 0.]], dtype=torch.float64)

    ```
    """
    rewards = check_rewards(rewards)
    size = rewards.shape[-1]
    n = check_count("n", n, 1, "Draw a larger pool or compare smaller subsets.", size, "the pool")
    replicates = check_count("replicates", replicates, 1, "Pass e.g. replicates=50.")
    per_round = 1 if replacement else size // n
    rounds = math.ceil(replicates / per_round)
    block = max(1, _BLOCK // (n * per_round))
    return torch.cat(
        [_of_block(law, part, n, rounds, per_round, generator, replacement) for part in rewards.split(block)]
    )


def _of_block(
    law: Law,
    rewards: torch.Tensor,
    n: int,
    rounds: int,
    per_round: int,
    generator: torch.Generator | None,
    replacement: bool,
) -> torch.Tensor:
    total = torch.zeros_like(rewards)
    for _ in range(rounds):
        drawn = random_subsets(rewards, n * per_round, generator, replacement)
        found = law(rewards.gather(-1, drawn).view(len(rewards), per_round, n))
        total.scatter_add_(-1, drawn, found.reshape(len(rewards), -1))
    return total / (rounds * per_round)


def random_subsets(
    rewards: torch.Tensor, n: int, generator: torch.Generator | None = None, replacement: bool = False
) -> torch.Tensor:
    """Return the places `(P, n)` of `n` random responses of each pool `(P, M)`, in random order."""
    prompts, size = rewards.shape
    if replacement:
        return torch.randint(size, (prompts, n), generator=generator, device=rewards.device)
    return torch.rand(prompts, size, dtype=torch.float64, generator=generator, device=rewards.device).argsort(dim=-1)[
        :, :n
    ]


def _shared_among_ties(rewards: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Spread the `mass (N,)` of the ranks, lowest reward first, over the candidates, ties sharing theirs equally."""
    ascending = rewards.sort(dim=-1).values
    rewards = rewards.contiguous()  # searchsorted warns otherwise
    first = torch.searchsorted(ascending, rewards)
    last = torch.searchsorted(ascending, rewards, right=True)
    below = torch.cat([mass.new_zeros(1), mass.cumsum(dim=0)])
    shared = (below[last] - below[first]) / (last - first)
    # Without a tie the mass itself: a difference of sums has lost digits.
    return torch.where(last - first == 1, mass[first], shared)
