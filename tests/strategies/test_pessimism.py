"""Test pessimism as a strategy: the shared pool, the paper's Algorithm 1, its diagnostics and its advice."""

from __future__ import annotations

import math
import re

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional import normalize_rewards, pessimism
from hf_itp.strategies import Pessimism
from tests.functional.references import REFERENCE_VALUES, doubles, first_accepts
from tests.worlds.odds import assert_follows

CASES = REFERENCE_VALUES["pessimism"]["cases"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=seeded(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"beta={case['beta']}")
def test_reference_values_are_met(case):
    rewards = doubles(case["rewards"])
    law = Pessimism(beta=case["beta"]).probabilities(rewards)
    assert law.tolist() == pytest.approx([weight / 5 for weight in case["weights"]], abs=1e-10)
    found = Pessimism(beta=case["beta"], reward_bound=case["r_max"]).diagnostics(rewards)
    assert found["normalizer"].item() == pytest.approx(case["lambda"], abs=1e-10)
    assert found["bound"].item() == pytest.approx(case["M"], abs=1e-10)
    assert found["acceptance_rate"].item() == pytest.approx(1 / case["M"], abs=1e-10)
    assert found["support_size"].item() == sum(weight > 0 for weight in case["weights"])


def test_bound_above_every_reward_changes_no_probability():
    rewards = rand(20, 9)
    torch.testing.assert_close(
        Pessimism(0.2, reward_bound=1.5).probabilities(rewards), Pessimism(0.2).probabilities(rewards)
    )


def test_bound_below_the_best_reward_clips_it():
    # Weights 3.5 and 1.5 above the normalizer 0.65; a bound of 0.85 makes M = 2.
    law = Pessimism(0.1, reward_bound=0.85).probabilities(doubles(CASES[1]["rewards"]))
    assert law.tolist() == pytest.approx([2 / 3.5, 1.5 / 3.5, 0, 0, 0])


def test_bound_below_the_normalizer_is_refused():
    with pytest.raises(ArgumentError, match="Set it to the largest reward the reward model can give, or leave it out"):
        Pessimism(0.1, reward_bound=0.6).probabilities(doubles(CASES[1]["rewards"]))


@pytest.mark.parametrize("normalize", ["zscore", "quantile"])
def test_normalized_pessimism_ignores_scale_and_offset(normalize):
    rewards = rand(20, 9)
    strategy = Pessimism(0.2, normalize=normalize)
    torch.testing.assert_close(strategy.probabilities(rewards * 50 - 7), strategy.probabilities(rewards))
    expected = pessimism(normalize_rewards(rewards, normalize), 0.2)
    torch.testing.assert_close(strategy.probabilities(rewards), expected[0] / 9)
    torch.testing.assert_close(strategy.diagnostics(rewards)["normalizer"], expected[1])


def test_bound_is_on_the_normalized_scale_and_one_for_quantiles():
    rewards = rand(4, 10) * 100
    found = Pessimism(0.05, normalize="quantile").diagnostics(rewards)
    torch.testing.assert_close(found["bound"], (1 - found["normalizer"]) / 0.05)
    given = Pessimism(0.05, normalize="zscore", reward_bound=6.0).diagnostics(rewards)
    torch.testing.assert_close(given["bound"], (6 - given["normalizer"]) / 0.05)


@pytest.mark.parametrize("beta", [0.01, 0.05, 0.2, 0.5])
def test_quantile_support_is_the_top_of_the_ranks(beta):
    """Weights are linear in rank, so the support is the largest k up to N with k (k - 1) < 2 beta N^2."""
    size = 50
    found = Pessimism(beta, normalize="quantile").diagnostics(rand(size))
    assert found["support_size"].item() == max(k for k in range(1, size + 1) if k * (k - 1) < 2 * beta * size**2)


# Algorithm 1


def acceptance(rewards: list[float], size: int, beta: float, reward_bound: float | None) -> list[float]:
    """Return the acceptance probability of each proposal after the first `size` rewards, from the formulas."""
    normalizer = pessimism(doubles(rewards[:size]), beta)[1]
    bound = (max(rewards[:size]) if reward_bound is None else reward_bound) - normalizer.item()
    return [min(max(reward - normalizer.item(), 0) / bound, 1.0) for reward in rewards[size:]]


@pytest.mark.parametrize("reward_bound", [None, 0.7, 1.0, 4.0])
@pytest.mark.parametrize("num_rewards", [3, 4, 9, 16])
def test_fresh_law_is_that_of_first_acceptance(num_rewards, reward_bound):
    strategy = Pessimism(0.1, pool="fresh", reward_bound=reward_bound)
    for seed in range(20):
        rewards = rand(num_rewards, seed=seed)
        size = (num_rewards - 1) // 2
        if reward_bound is not None and pessimism(rewards[:size], 0.1)[1] >= reward_bound:
            continue
        law, fallback = first_accepts(acceptance(rewards.tolist(), size, 0.1, reward_bound)[:-1])
        expected = [0.0] * size + law + [fallback]
        assert strategy.probabilities(rewards).tolist() == pytest.approx(expected, abs=1e-12)


def test_decide_follows_the_fresh_law(seed=0):
    """A finished run of 2 N + 1 draws has one law, however it is read. Gives a false alarm with odds below 1e-6."""
    strategy = Pessimism(0.1, pool="fresh", reward_bound=1.2)
    rewards = doubles([0.2, 0.9, 0.5, 0.4, 0.85, 0.6, 0.95, 0.1, 0.3])
    generator = seeded(seed)
    drawn = [strategy.decide(rewards, 4, 1, generator).item() for _ in range(6_000)]
    assert_follows(drawn, dict(enumerate(strategy.probabilities(rewards).tolist())))


def test_decide_asks_for_more_until_a_proposal_is_accepted():
    strategy = Pessimism(0.1, pool="fresh")
    first = doubles([0.5, 0.4, 0.1])  # normalizer above 0.2, so 0 is rejected and 9 accepted for certain
    assert strategy.decide(first, 3, 1, seeded()) is None
    assert strategy.decide(doubles([0.5, 0.4, 0.1, 0.0]), 3, 1, seeded()) is None
    assert strategy.decide(doubles([0.5, 0.4, 0.1, 0.0, 9.0]), 3, 1, seeded()).tolist() == [4]
    rejected = [0.5, 0.4, 0.1, 0.0, 0.0, 0.0]
    assert strategy.decide(doubles(rejected), 3, 1, seeded()) is None
    assert strategy.decide(doubles([*rejected, -5.0]), 3, 1, seeded()).tolist() == [6]


def test_accepted_come_first_and_fallbacks_fill_up():
    strategy = Pessimism(0.1, pool="fresh")
    run = doubles([0.5, 0.4, 0.1, 0.0, 9.0, 0.0, -1.0, -2.0])
    assert strategy.decide(run[:7], 3, 3, seeded()) is None
    indices = strategy.decide(run, 3, 3, seeded())
    assert indices.tolist() == [4, 6, 7]
    assert strategy.selection_diagnostics(indices, 3)["fallbacks"].item() == 2
    assert strategy.selection_diagnostics(torch.tensor([[4, 5], [6, 7]]), 3)["fallbacks"].tolist() == [0, 2]
    assert Pessimism().selection_diagnostics(torch.tensor([[0, 1]]), 3) == {}


def test_select_reads_a_finished_run_as_decide_does():
    strategy = Pessimism(0.15, pool="fresh", reward_bound=1.0)
    for seed in range(200):
        rewards = rand(13, seed=seed)  # 5 for the normalizer, 5 proposals, 3 fallbacks
        assert torch.equal(strategy.select(rewards, 3, seeded(seed)), strategy.decide(rewards, 5, 3, seeded(seed)))


def test_normalization_of_proposals_is_that_of_the_first_pool():
    for normalize in ("zscore", "quantile"):
        strategy = Pessimism(0.3, pool="fresh", normalize=normalize)
        rewards = rand(11)
        law = strategy.probabilities(rewards)
        torch.testing.assert_close(strategy.probabilities(rewards * 30 + 4), law)
        # The order of magnitude of one proposal says nothing about another one.
        moved = rewards.clone()
        moved[9] = 1e6
        torch.testing.assert_close(strategy.probabilities(moved)[:9], law[:9])


def test_no_acceptance_probability_is_the_part_of_runs_that_fall_back(seed=0):
    """
    With rewards uniform on (0, 1), beta 0.01, N = 4 and a known bound, 63% of runs fall back. 4,000 runs have a
    standard error of 0.8%; gives a false alarm with odds below 1e-6 (five standard errors).
    """
    strategy = Pessimism(0.01, pool="fresh", reward_bound=1.0)
    indices = strategy.select(rand(4_000, 9, seed=seed), 1, seeded(seed + 1))
    fallbacks = strategy.selection_diagnostics(indices, 4)["fallbacks"].double().mean().item()
    assert fallbacks == pytest.approx(0.63, abs=0.005 + 5 * math.sqrt(0.63 * 0.37 / 4_000))


def test_fresh_diagnostics_describe_the_first_pool():
    rewards = doubles(CASES[1]["rewards"])
    found = Pessimism(0.1, pool="fresh", reward_bound=1.0).diagnostics(rewards)
    assert found["normalizer"].item() == pytest.approx(0.65)
    assert found["acceptance_rate"].item() == pytest.approx(1 / 3.5)
    assert found["no_acceptance_probability"].item() == pytest.approx((1 - 1 / 3.5) ** 5)


def test_decide_needs_the_first_pool():
    with pytest.raises(ArgumentError, match="Score `num_candidates` responses first"):
        Pessimism(pool="fresh").decide(torch.tensor([0.5, 0.1]), 3)


# Advice


def bounds(advice: str) -> tuple[float, float]:
    lower, upper = re.search(r"between (\S+) and (\S+)\.$", advice).groups()
    return float(lower), float(upper)


@pytest.mark.parametrize("normalize", ["none", "zscore", "quantile"])
@pytest.mark.parametrize("size", [2, 4, 32, 300])
@pytest.mark.parametrize(("beta", "extreme"), [(1e-7, "small.*best_of_n"), (1e4, "large.*plain sampling")])
def test_advice_names_an_extreme_beta_and_its_range_would_do(beta, extreme, size, normalize):
    rewards = rand(20, size) * 3
    advice = Pessimism(beta, normalize=normalize).advice(rewards)
    assert re.search(rf"`beta` .* is so {extreme}", advice)
    lower, upper = bounds(advice)
    # Settings at the ends of the advised range raise no advice themselves.
    assert lower < upper
    assert Pessimism(lower, normalize=normalize).advice(rewards) is None
    assert Pessimism(upper, normalize=normalize).advice(rewards) is None


def test_advice_is_for_one_pool_too_and_quiet_where_beta_fits():
    rewards = torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3])
    assert Pessimism(0.1).advice(rewards) is None
    assert "effective sample size is 1.00 of 5 candidates" in Pessimism(1e-3).advice(rewards)
    assert "effective sample size is 5.00 of 5 candidates" in Pessimism(1e3).advice(rewards)


@pytest.mark.parametrize("beta", [1e-9, 0.1, 1e9])
def test_pools_that_cannot_tell_give_no_advice(beta):
    assert Pessimism(beta).advice(torch.rand(10, 1, generator=seeded())) is None
    assert Pessimism(beta).advice(torch.full((3, 8), 0.7)) is None
    assert Pessimism(beta).advice(torch.empty(0, 8)) is None


def test_ties_for_the_best_are_not_mistaken_for_a_fitting_beta():
    rewards = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.2, 0.1]])
    advice = Pessimism(1e-6).advice(rewards)
    assert "best_of_n" in advice
    assert Pessimism(bounds(advice)[0]).advice(rewards) is None


def test_pools_of_equal_rewards_do_not_dilute_the_advice():
    rewards = torch.cat([torch.ones(50, 6), rand(2, 6).float()])
    assert "(median of 2 pools)" in Pessimism(1e-6).advice(rewards)


def test_few_extreme_pools_among_many_give_no_advice():
    rewards = torch.cat([rand(9, 8), 1e6 * rand(1, 8)])
    assert Pessimism(0.1).advice(rewards) is None


@pytest.mark.parametrize(
    ("fields", "error", "remedy"),
    [
        ({"beta": 0}, ArgumentError, "Choose a beta on the scale of the rewards"),
        ({"beta": None}, ArgumentTypeError, "Choose a beta on the scale of the rewards"),
        ({"pool": "both"}, ArgumentError, "'shared', 'fresh', got 'both'"),
        ({"normalize": "minmax"}, ArgumentError, "'none', 'zscore', 'quantile', got 'minmax'"),
        ({"reward_bound": "1"}, ArgumentTypeError, "Set it to the largest reward"),
        ({"reward_bound": True}, ArgumentTypeError, "Set it to the largest reward"),
        ({"reward_bound": math.inf}, ArgumentError, "Set it to the largest reward"),
    ],
)
def test_bad_field_is_refused_with_a_remedy(fields, error, remedy):
    with pytest.raises(error, match=remedy):
        Pessimism(**fields)
