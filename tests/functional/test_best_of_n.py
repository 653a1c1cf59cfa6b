"""Test the laws of best-of-n and its relatives against enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import poisson

from hf_itp import functional
from hf_itp.errors import ArgumentError, ArgumentTypeError
from tests.functional.references import best_of_prefix, best_of_subsets, doubles, random_pools


def test_tie_is_shared_equally():
    rewards = torch.tensor([[0.7, 0.2, 0.7, 0.2], [0.1, 0.2, 0.3, 0.4]])
    assert functional.best_of_n_law(rewards).tolist() == [[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert functional.worst_of_n_law(rewards).tolist() == [[0.0, 0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0]]


def test_best_of_a_random_subset_agrees_with_enumeration():
    for pool in random_pools(60, seed=1, largest=8):
        for size in range(1, len(pool) + 1):
            law = functional.best_of_n_subsample_law(doubles(pool), size)
            assert law.tolist() == pytest.approx(best_of_subsets(pool, size), abs=1e-14)


def test_best_of_a_subset_spans_plain_sampling_to_best_of_n():
    rewards = doubles([3.0, 1.0, 3.0, 2.0, -1.0])
    torch.testing.assert_close(
        functional.best_of_n_subsample_law(rewards, 1), torch.full((5,), 0.2, dtype=torch.float64)
    )
    torch.testing.assert_close(functional.best_of_n_subsample_law(rewards, 5), functional.best_of_n_law(rewards))


@pytest.mark.parametrize("n", [2, 100, 3000, 7999])
def test_subset_law_is_exact_for_pools_of_thousands(n):
    size = 8000
    rewards = torch.arange(size).flip(0)
    law = functional.best_of_n_subsample_law(rewards, n)
    assert law.sum().item() == pytest.approx(1, abs=1e-12)
    for rank in (size, size - 1, size - 5, size // 2):
        exact = math.comb(rank - 1, n - 1) / math.comb(size, n)
        assert law[size - rank].item() == pytest.approx(exact, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("n", [0, 4, -1])
def test_subset_larger_than_the_pool_is_refused(n):
    with pytest.raises(ArgumentError, match="Draw a larger pool or compare smaller subsets"):
        functional.best_of_n_subsample_law(torch.tensor([1.0, 2.0, 3.0]), n)


@pytest.mark.parametrize("n", [2.0, True, "2"])
def test_size_of_a_subset_is_a_whole_number(n):
    with pytest.raises(ArgumentTypeError, match="Give a whole number"):
        functional.best_of_n_subsample_law(torch.tensor([1.0, 2.0, 3.0]), n)


def test_soft_best_of_n_is_a_softmax():
    rewards = [0.3, -0.2, 1.1]
    masses = [math.exp(reward / 0.7) for reward in rewards]
    expected = [mass / sum(masses) for mass in masses]
    assert functional.soft_best_of_n_law(doubles(rewards), 0.7).tolist() == pytest.approx(expected, abs=1e-15)


def test_soft_best_of_n_reaches_its_extremes_without_overflow():
    rewards = doubles([1e300, -1e300, 1e300])
    assert functional.soft_best_of_n_law(rewards, 1e-300).tolist() == [0.5, 0.0, 0.5]
    uniform = functional.soft_best_of_n_law(doubles([1.0, -1.0, 1.0]), 1e300)
    torch.testing.assert_close(uniform, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_soft_best_of_n_stays_within_its_divergence_bound():
    """KL from the pool's law is at most log(N / (1 + (N - 1) exp(-1 / temperature))) for rewards in [0, 1]."""
    rewards = torch.rand(500, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (0.01, 0.1, 1.0, 10.0):
        law = functional.soft_best_of_n_law(rewards, temperature)
        divergence = torch.xlogy(law, 10 * law).sum(dim=-1)
        assert (divergence <= math.log(10 / (1 + 9 * math.exp(-1 / temperature))) + 1e-12).all()


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    [
        (1, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (1.5, [0.25, 0.25, 0.25, 0.125, 0.125]),
        (2, [1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]),
        (3, [1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]),
        (5, [1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]),
        (100, [1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]),
    ],
)
def test_top_quantile_shares_the_edge_among_ties(multiplier, expected):
    rewards = torch.tensor([0.9, 0.9, 0.9, 0.1, 0.1])
    assert functional.top_quantile_law(rewards, multiplier).tolist() == pytest.approx(expected, abs=1e-15)


def test_top_quantile_agrees_with_enumeration_of_tie_breaks():
    """Averaged over tie-breaks, the candidates in the top `count` places get `1 / count` each."""
    for pool in random_pools(300, seed=2):
        for multiplier in (1, 2.7, 8):
            count = math.ceil(len(pool) / multiplier)
            edge = sorted(pool, reverse=True)[count - 1]
            above, ties = sum(reward > edge for reward in pool), pool.count(edge)
            shares = [
                1 / count if reward > edge else (count - above) / ties / count * (reward == edge) for reward in pool
            ]
            assert functional.top_quantile_law(doubles(pool), multiplier).tolist() == pytest.approx(shares, abs=1e-15)


def test_rounding_of_the_quotient_adds_no_candidate():
    rewards = torch.arange(15)
    assert 15 / (15 / 13) > 13, "the quotient rounds up, or this test shows nothing"
    assert (functional.top_quantile_law(rewards, 15 / 13) > 0).sum() == 13


@pytest.mark.parametrize("multiplier", [0.99, 0, -1, math.inf, math.nan])
def test_multiplier_below_one_is_refused(multiplier):
    with pytest.raises(ArgumentError, match="Choose at least 1, which is plain sampling"):
        functional.top_quantile_law(torch.tensor([1.0]), multiplier)


@pytest.mark.parametrize("rate", [0.01, 1.0, 7.5, 300.0])
def test_best_of_poisson_sums_best_of_n_over_the_number_of_candidates(rate):
    for pool in random_pools(200, seed=3):
        size = len(pool)
        masses = [*poisson.pmf(range(size - 1), rate), poisson.sf(size - 2, rate)]
        expected = [0.0] * size
        for count, mass in enumerate(masses, start=1):
            for index, share in enumerate(best_of_prefix(pool, count)):
                expected[index] += mass * share
        assert functional.best_of_poisson_law(doubles(pool), rate).tolist() == pytest.approx(expected, abs=1e-12)


def test_best_of_poisson_of_a_huge_rate_is_best_of_n():
    rewards = doubles([[1.0, 3.0, 3.0], [5.0, 4.0, 2.0]])
    torch.testing.assert_close(functional.best_of_poisson_law(rewards, 1e6), functional.best_of_n_law(rewards))


@pytest.mark.parametrize(
    "law", [lambda r: functional.soft_best_of_n_law(r, 0.5), lambda r: functional.top_quantile_law(r, 2.5)]
)
def test_permuting_candidates_permutes_the_law(law):
    rewards = (torch.randn(50, 12, generator=torch.Generator().manual_seed(4)) * 2).round()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(law(rewards[:, order]), law(rewards)[:, order])


@pytest.mark.parametrize("n", [2, 5, 12])
def test_divergence_of_best_of_n_is_at_most_its_closed_form(n):
    """
    Averaged over subsets of a pool without ties, with the pool as the policy, it is at most log n - (n - 1) / n, and
    close to it for a large pool.
    """
    law = functional.best_of_n_subsample_law(torch.arange(5000), n)
    divergence = torch.xlogy(law, 5000 * law).sum().item()
    bound = math.log(n) - (n - 1) / n
    assert bound - 0.01 < divergence < bound + 0.01
    tied = functional.best_of_n_subsample_law(torch.arange(5000) // 1000, n)
    assert torch.xlogy(tied, 5000 * tied).sum().item() < divergence
