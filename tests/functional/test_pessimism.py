"""Test the closed form of pessimism against reference values, a slow reference, and the laws it must obey."""

from __future__ import annotations

import math

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError
from hf_itp.functional import (
    best_of_n_law,
    beta_for_effective_sample_size,
    effective_sample_size,
    pessimism,
    weights_beyond_pool,
)
from tests.functional.references import REFERENCE_VALUES, doubles, loop_pessimism, random_pools, sparsemax

CASES = REFERENCE_VALUES["pessimism"]["cases"]
BETAS = (1e-4, 0.01, 0.3, 2.0, 50.0)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"beta={case['beta']}")
def test_reference_values_are_met(case):
    weights, normalizer = pessimism(doubles(case["rewards"]), case["beta"])
    assert weights.tolist() == pytest.approx(case["weights"], abs=1e-10)
    assert normalizer.item() == pytest.approx(case["lambda"], abs=1e-10)


def test_closed_form_agrees_with_the_loop_on_thousands_of_pools_with_ties():
    for index, pool in enumerate(random_pools(3000, seed=1)):
        beta = BETAS[index % len(BETAS)]
        weights, normalizer = pessimism(doubles(pool), beta)
        expected, expected_normalizer = loop_pessimism(pool, beta)
        assert normalizer.item() == pytest.approx(expected_normalizer, abs=1e-14 * max(map(abs, pool)), rel=1e-12)
        assert weights.tolist() == pytest.approx(expected, abs=1e-10)


def test_law_is_sparsemax_of_rewards_over_n_beta():
    for index, pool in enumerate(random_pools(1000, seed=2)):
        beta = BETAS[index % len(BETAS)] * max(1.0, max(map(abs, pool)))
        weights, _ = pessimism(doubles(pool), beta)
        law = (weights / len(pool)).tolist()
        assert law == pytest.approx(sparsemax([reward / (len(pool) * beta) for reward in pool]), abs=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_conditions_of_optimality_hold(beta):
    """KKT: mean 1, nonnegative, reward - beta * weight equal to the normalizer on the support and no larger off it."""
    rewards = randn(200, 30)
    weights, normalizer = pessimism(rewards, beta)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.mean(dim=-1), torch.ones(200, dtype=torch.float64))
    marginal = rewards - beta * weights - normalizer.unsqueeze(-1)
    assert marginal[weights > 0].abs().max() < 1e-12 * max(1, beta)
    assert marginal.max() < 1e-12 * max(1, beta)


def test_no_other_law_does_better():
    rewards, beta = randn(50, 12), 0.2
    others = torch.rand(50, 200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).pow(8)
    others = 12 * others / others.sum(dim=-1, keepdim=True)

    def objective(weights, rewards):
        return (weights * rewards - beta / 2 * (weights - 1).square()).mean(dim=-1)

    ours = objective(pessimism(rewards, beta)[0], rewards)
    assert (ours.unsqueeze(-1) >= objective(others, rewards.unsqueeze(1)) - 1e-12).all()


@pytest.mark.parametrize("size", [64, 65, 200, 1000])
@pytest.mark.parametrize("beta", [1e-3, 0.1, 0.7, 3.0])
def test_large_pools_agree_with_the_loop_whatever_part_is_the_support(size, beta):
    """Above 64 candidates only the top quarter is looked at first: supports on both sides of it must be right."""
    pools = randn(4, size, seed=size)
    weights, normalizer = pessimism(pools, beta)
    for row in range(4):
        expected, expected_normalizer = loop_pessimism(pools[row].tolist(), beta)
        assert weights[row].tolist() == pytest.approx(expected, abs=1e-10)
        assert normalizer[row].item() == pytest.approx(expected_normalizer, abs=1e-13)


def test_batch_equals_its_rows_for_any_leading_shape():
    rewards = randn(2, 3, 1, 7)
    weights, normalizer = pessimism(rewards, 0.1)
    assert weights.shape == (2, 3, 1, 7) and normalizer.shape == (2, 3, 1)
    for i in range(2):
        for j in range(3):
            alone, alone_normalizer = pessimism(rewards[i, j, 0], 0.1)
            assert torch.equal(weights[i, j, 0], alone) and torch.equal(normalizer[i, j, 0], alone_normalizer)
    assert pessimism(torch.empty(0, 5), 0.1)[0].shape == (0, 5)


def test_constant_moves_the_normalizer_and_keeps_the_weights():
    # Multiples of 1/64 stay exact under the offset, so that any difference is the function's own.
    rewards = (randn(100, 20) * 64).round() / 64
    weights, normalizer = pessimism(rewards, 0.25)
    for constant in (-3.0, 1e8, -1e12):
        moved, moved_normalizer = pessimism(rewards + constant, 0.25)
        assert torch.equal(moved, weights)
        torch.testing.assert_close(moved_normalizer, normalizer + constant, rtol=1e-15, atol=1e-12)


def test_scaling_rewards_and_beta_together_keeps_the_weights():
    rewards = randn(100, 20)
    weights, normalizer = pessimism(rewards, 0.2)
    for scale in (1e-100, 1e-6, 7.0, 1e100):
        scaled, scaled_normalizer = pessimism(rewards * scale, 0.2 * scale)
        torch.testing.assert_close(scaled, weights, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(scaled_normalizer / scale, normalizer)


def test_huge_beta_is_plain_sampling():
    rewards = randn(50, 100)
    for beta in (1e6, 1e300, 1.7e308):
        weights, _ = pessimism(rewards, beta)
        torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-5)


def test_beta_up_to_gap_over_n_is_exactly_best_of_n():
    for pool in random_pools(500, seed=4):
        rewards = doubles(pool)
        levels = sorted(set(pool))
        gap = levels[-1] - levels[-2] if len(levels) > 1 else 1.0
        for beta in (0.999 * gap / len(pool), 1e-9 * gap, 5e-324):
            weights, _ = pessimism(rewards, beta)
            assert torch.equal(weights > 0, rewards == rewards.max())
            torch.testing.assert_close(weights / len(pool), best_of_n_law(rewards), rtol=1e-12, atol=0)


def test_beta_above_gap_over_n_is_no_longer_best_of_n():
    rewards = doubles([1.0, 0.6, 0.0, -2.0])
    assert (pessimism(rewards, 0.4 / 4 * 1.001)[0] > 0).sum() == 2


def test_single_candidate_has_weight_one():
    weights, normalizer = pessimism(torch.tensor([[3.0], [-1e20]]), 0.5)
    assert weights.tolist() == [[1.0], [1.0]]
    assert normalizer.tolist() == [2.5, float(torch.tensor(-1e20))]


def test_equal_rewards_have_equal_weights():
    weights, normalizer = pessimism(torch.full((3, 100), 0.1), 0.01)
    torch.testing.assert_close(weights, torch.ones(3, 100, dtype=torch.float64))
    torch.testing.assert_close(normalizer, torch.full((3,), float(torch.tensor(0.1)) - 0.01, dtype=torch.float64))


def test_permuting_candidates_permutes_weights():
    rewards = (randn(100, 90) * 3).round()
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(pessimism(rewards[:, order], 0.3)[0], pessimism(rewards, 0.3)[0][:, order])


def test_normalizer_stays_between_its_bounds():
    rewards = randn(300, 15)
    for beta in BETAS:
        normalizer = pessimism(rewards, beta)[1]
        lower, upper = rewards.mean(dim=-1) - beta, rewards.amax(dim=-1) - beta
        assert (normalizer >= lower - 1e-12).all() and (normalizer <= upper + 1e-12).all()
        attained = rewards.amin(dim=-1) >= lower
        assert torch.equal(attained, (normalizer - lower).abs() < 1e-12)


def test_low_precision_rewards_are_solved_in_double_precision():
    weights, _ = pessimism(torch.tensor([1.0, 0.75, 0.5], dtype=torch.bfloat16), 0.125)
    assert weights.dtype == torch.float64
    assert weights.tolist() == loop_pessimism([1.0, 0.75, 0.5], 0.125)[0]


def test_regret_stays_under_its_bound_on_random_finite_problems():
    """
    For every comparator: regret <= sqrt(C) eps + beta C / 2 + eps^2 / (2 beta), with C its coverage and eps^2 the mean
    squared error of the reward model. The pool is the policy: uniform, exact normalizer.
    """
    generator = torch.Generator().manual_seed(6)
    for size in (2, 5, 40):
        true, noise = (torch.rand(700, size, dtype=torch.float64, generator=generator) for _ in range(2))
        level = torch.rand(700, 1, dtype=torch.float64, generator=generator)
        modelled = true + level * (noise - 0.5)
        comparator = torch.rand(700, size, dtype=torch.float64, generator=generator).pow(6)
        comparator = comparator / comparator.sum(dim=-1, keepdim=True)
        coverage = size * comparator.square().sum(dim=-1)
        error = (modelled - true).square().mean(dim=-1).sqrt()
        for beta in (0.003, 0.03, 0.3, 3.0):
            law = pessimism(modelled, beta)[0] / size
            regret = ((comparator - law) * true).sum(dim=-1)
            bound = coverage.sqrt() * error + beta * coverage / 2 + error.square() / (2 * beta)
            assert (regret <= bound + 1e-12).all()


def test_weights_beyond_the_pool_agree_with_those_inside():
    rewards = randn(100, 20)
    weights, normalizer = pessimism(rewards, 0.2)
    torch.testing.assert_close(weights_beyond_pool(rewards, rewards, weights, 0.2), weights)
    new = randn(100, 5, seed=9)
    expected = ((new - normalizer.unsqueeze(-1)) / 0.2).clamp_min(0)
    torch.testing.assert_close(weights_beyond_pool(new, rewards, weights, 0.2), expected)


def test_weights_beyond_the_pool_keep_their_digits_under_a_tiny_beta():
    rewards = doubles([1e8, 1e8 - 1])
    weights, _ = pessimism(rewards, 1e-12)
    assert weights_beyond_pool(rewards, rewards, weights, 1e-12).tolist() == [2.0, 0.0]


def test_beta_for_a_size_gives_that_size():
    for pool in random_pools(600, seed=7):
        rewards, best = doubles(pool), max(pool)
        ties = pool.count(best)
        for part in (0.0, 0.3, 0.9, 0.999):
            size = 1 + part * (len(pool) - 1)
            if size >= len(pool):
                continue
            beta = beta_for_effective_sample_size(rewards, size).item()
            if size < ties:
                assert beta == 0
            else:
                reached = effective_sample_size(pessimism(rewards, beta)[0] / len(pool)).item()
                assert reached == pytest.approx(size, rel=1e-6)


def test_beta_for_a_size_is_batched():
    rewards, sizes = randn(3, 4, 30), 2 + 20 * torch.rand(3, 4, generator=torch.Generator().manual_seed(8))
    betas = beta_for_effective_sample_size(rewards, sizes)
    assert betas[1, 2] == beta_for_effective_sample_size(rewards[1, 2], sizes[1, 2])


@pytest.mark.parametrize(
    ("rewards", "beta", "error", "remedy"),
    [
        ([1.0], 0.1, ArgumentTypeError, r"Wrap it in torch\.tensor"),
        (torch.tensor(1.0), 0.1, ArgumentError, "Score at least one candidate per prompt"),
        (torch.empty(2, 0), 0.1, ArgumentError, "Score at least one candidate per prompt"),
        (torch.tensor([True]), 0.1, ArgumentTypeError, "Convert it first"),
        (torch.tensor([1j]), 0.1, ArgumentTypeError, "Convert it first"),
        (torch.tensor([1.0, math.nan]), 0.1, RewardError, "got nan for candidate 1.*Return a finite float"),
        (torch.tensor([[0.0], [-math.inf]]), 0.1, RewardError, "got -inf for prompt 1, candidate 0.*Return a finite"),
        (torch.tensor([[[0.0, math.inf]]]), 0.1, RewardError, r"got inf for prompt \(0, 0\), candidate 1"),
        (torch.tensor([1.0]), 0.0, ArgumentError, "Choose a beta on the scale of the rewards"),
        (torch.tensor([1.0]), -1, ArgumentError, "Choose a beta on the scale of the rewards"),
        (torch.tensor([1.0]), math.nan, ArgumentError, "Choose a beta on the scale of the rewards"),
        (torch.tensor([1.0]), math.inf, ArgumentError, "Choose a beta on the scale of the rewards"),
        (torch.tensor([1.0]), "0.1", ArgumentTypeError, "Choose a beta on the scale of the rewards"),
        (torch.tensor([1.0]), True, ArgumentTypeError, "Choose a beta on the scale of the rewards"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(rewards, beta, error, remedy):
    with pytest.raises(error, match=remedy):
        pessimism(rewards, beta)


@pytest.mark.parametrize("size", [0.5, 3.0, math.nan])
def test_size_no_beta_gives_is_refused(size):
    with pytest.raises(ArgumentError, match="Ask for a size that a finite beta gives"):
        beta_for_effective_sample_size(torch.tensor([1.0, 2.0, 3.0]), size)
