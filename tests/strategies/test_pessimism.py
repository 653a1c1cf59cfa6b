"""Test pessimism as a strategy: the shared pool, the paper's Algorithm 1, its diagnostics and its advice."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional import normalize_rewards, pessimism
from hf_itp.strategies import Pessimism, get_strategy
from tests.functional.references import REFERENCE_VALUES, doubles, first_accepts, loop_pessimism
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


# The default


def zscores(rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / deviation if deviation else 0.0 for reward in rewards]


@pytest.mark.parametrize("size", [2, 5, 16])
def test_default_is_the_law_of_0_2_on_z_scores(size):
    for seed in range(20):
        rewards = (10 * rand(size, seed=seed)).round().tolist()  # with ties
        weights, _ = loop_pessimism(zscores(rewards), 0.2)
        expected = [weight / size for weight in weights]
        assert Pessimism().probabilities(doubles(rewards)).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("strategy", [Pessimism(), Pessimism(pool="fresh"), Pessimism(normalize="zscore")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_gives_the_same_laws_on_every_scale(strategy, dtype):
    """Multiplied by 10 and shifted by 100, exact up to rounding; ties and equal rewards among the pools."""
    rewards = torch.cat([rand(30, 17), (4 * rand(30, 17, seed=1)).round(), torch.full((1, 17), 0.3).double()]).to(
        dtype
    )
    moved = rewards * 10 + 100
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        strategy.probabilities(moved), strategy.probabilities(rewards), atol=tolerance, rtol=tolerance
    )
    if dtype == torch.float64:
        assert torch.equal(strategy.select(moved, 2, seeded()), strategy.select(rewards, 2, seeded()))


@pytest.mark.parametrize("pool", ["shared", "fresh"])
def test_default_on_equal_rewards_is_plain_sampling(pool):
    law = Pessimism(pool=pool).probabilities(torch.full((2, 9), -7.5))
    # Of a fresh pool the first proposal, the fifth of nine, is accepted for certain.
    expected = [1 / 9] * 9 if pool == "shared" else [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert law.tolist() == [pytest.approx(expected)] * 2
    assert Pessimism().probabilities(torch.tensor([3.0])).tolist() == [1]


def test_fields_show_what_runs_and_reload_to_the_same():
    assert str(Pessimism()) == "Pessimism(beta=0.2, pool='shared', reward_bound=None, normalize='zscore')"
    assert Pessimism() == Pessimism(0.2, normalize="zscore") == Pessimism(normalize="zscore")
    assert Pessimism(0.2).settings() == {"beta": 0.2, "pool": "shared", "reward_bound": None, "normalize": "none"}
    for strategy in (Pessimism(), Pessimism(pool="fresh"), Pessimism(0.5), Pessimism(0.1, normalize="quantile")):
        assert get_strategy("pessimism", **json.loads(json.dumps(strategy.settings()))) == strategy
    bounded = Pessimism(normalize="zscore", reward_bound=6.0)
    assert (bounded.beta, bounded.reward_bound) == (0.2, 6.0)


def test_beta_that_is_given_counts_raw_rewards():
    rewards = 50 * rand(20, 9)
    for beta in (0.2, 5.0):
        expected, _ = pessimism(rewards, beta)
        torch.testing.assert_close(Pessimism(beta).probabilities(rewards), expected / 9)
        torch.testing.assert_close(get_strategy("pessimism", beta=beta).probabilities(rewards), expected / 9)


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


@pytest.mark.parametrize(("wide", "told"), [(2, False), (3, True), (5, True)])
def test_advice_comes_from_half_of_the_pools_on(wide, told):
    """Row 50: five of six pools are best-of-n, and it used to say nothing."""
    rewards = rand(6, 16)
    assert Pessimism(0.1).advice(rewards) is None
    rewards[:wide] *= 1e5
    advice = Pessimism(0.1).advice(rewards)
    assert (f"nearly best_of_n on {wide} of 6 pools" in advice) if told else (advice is None)


def test_ties_are_explained():
    """Three of four tie for the best: an effective sample size of 3 of 4 is best-of-n's, not plain sampling's."""
    advice = Pessimism(1e-6).advice(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    assert "nearly best_of_n" in advice and "effective sample size is 3.00 of 4 candidates" in advice
    assert "best_of_n's own being 3.00, because candidates tie for the best" in advice
    assert "tie for the best" not in Pessimism(1e-6).advice(torch.tensor([[1.0, 0.5, 0.2, 0.0]]))


def test_spreads_that_no_beta_fits_are_named():
    rewards = torch.cat([rand(5, 8), 1e6 * rand(5, 8, seed=1)])
    advice = Pessimism(1e-9).advice(rewards)
    assert advice.endswith("The spreads of these pools differ too much for one beta: leave it out.")
    assert "pessimism uses 0.2 standard deviations of each pool" in advice


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
        ({"beta": "0.1"}, ArgumentTypeError, "Choose a beta on the scale of the rewards"),
        ({"normalize": "quantile"}, ArgumentError, r"with normalize='quantile', got None.*or leave `normalize` out"),
        ({"normalize": "none"}, ArgumentError, r"with normalize='none', got None.*or leave `normalize` out"),
        ({"reward_bound": 2.0}, ArgumentError, r"`beta` must be given with `reward_bound`.*Pass beta=\.\.\."),
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
