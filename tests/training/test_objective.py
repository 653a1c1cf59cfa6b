"""Test that the arguments settle what is maximized, and that contradictions are refused before anything is loaded."""

from __future__ import annotations

import math

import pytest
import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional import alignment_tradeoff
from hf_itp.functional.transforms import BestOfNOptimal, Exponential, Identity
from hf_itp.training import CTRLObjective
from hf_itp.training.objective import DEPTH, ObjectiveArguments


def objective(**arguments):
    return CTRLObjective.from_arguments(ObjectiveArguments(**arguments))


@pytest.mark.parametrize("transform", [{"transform": "identity"}, {"transform": "exponential", "t": -5.0}, {}])
def test_beta_follows_from_the_divergence_aimed_at(transform):
    assert objective(**transform, target_kl=0.25).expected().kl == pytest.approx(0.25, abs=1e-6)


def test_half_a_nat_is_aimed_at_where_nothing_is_said():
    assert objective(transform="log").expected().kl == pytest.approx(0.5, abs=1e-6)
    assert objective(transform="log", beta=1.0).expected().win_rate == pytest.approx(2 / 3)


@pytest.mark.parametrize(("strategy", "n", "sign"), [("best_of_n", 2, 1), ("best_of_n", 4, 1), ("worst_of_n", 4, -1)])
def test_auto_is_nearly_as_good_as_the_optimum(strategy, n, sign):
    chosen = objective(strategy=strategy, num_candidates=n, target_kl=0.5)
    assert isinstance(chosen.transform, Exponential) and math.copysign(1, chosen.transform.t) == sign
    optimal = objective(strategy=strategy, num_candidates=n, transform=f"{strategy}_optimal", target_kl=0.5)
    rate = {"best_of_n": "best_of_n_win_rate", "worst_of_n": "worst_of_n_win_rate"}[strategy]
    assert getattr(chosen.expected(), rate)(n) > getattr(optimal.expected(), rate)(n) - 0.003


def test_auto_is_the_identity_where_nothing_selects():
    assert objective(strategy="none").transform == Identity()
    assert objective(num_candidates=1).transform == Identity()


def test_auto_takes_pessimism_for_the_best_of_n_it_matches():
    chosen = objective(strategy="pessimism", strategy_fields={"beta": 0.5})  # best-of-2 on calibrated rewards
    assert chosen.transform == objective(num_candidates=2).transform


def test_optimal_transform_is_solved_at_its_own_beta():
    chosen = objective(transform="best_of_n_optimal", num_candidates=2, target_kl=0.5)
    assert chosen.transform == BestOfNOptimal(2, chosen.beta)
    assert chosen.beta == pytest.approx(0.2340062, rel=1e-5)


def test_rewards_are_log_ratios_of_the_optimum():
    """Differences of rewards equal those of the optimum's log-density, whatever the transform's scale."""
    chosen = objective(transform="exponential", t=10.0)
    counts = torch.tensor([50, 90])
    difference = chosen.rewards(counts, torch.zeros_like(counts), 100).diff()
    expected = chosen.transform.estimate(counts, 100).diff() / chosen.beta
    torch.testing.assert_close(difference, expected)
    assert alignment_tradeoff(chosen.transform, chosen.beta).kl == pytest.approx(0.5)


def test_penalties_end_where_the_optimum_leaves_nothing():
    chosen = objective(transform="exponential", t=-10.0, strategy="worst_of_n")
    rewards = chosen.rewards(torch.tensor([0, 100]), torch.zeros(2), 100)
    assert rewards[1] - rewards[0] == pytest.approx(DEPTH, abs=1e-2)
    assert 1 / chosen.beta > 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.0, "target_kl": 0.5, "transform": "log"}, "One of `beta` and `target_kl` must be left out"),
        ({"beta": 1.0}, "must come with a named transform"),
        ({"t": 5.0}, "`t` must come with transform='exponential'"),
        ({"transform": "identity", "t": 5.0}, "`t` must come with transform='exponential'"),
        ({"transform": "exponential"}, "`t` must be given"),
        ({"transform": "exponential", "t": 10.0, "num_reference": 16}, "Draw 32 or more"),
        ({"transform": "square"}, "one of 'identity', 'log'"),
        ({"strategy": "top_quantile"}, "Name a transform"),
        ({"target_kl": -1.0}, "`kl` must be positive"),
        ({"transform": "log", "beta": 0.0}, "`beta` must be positive"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        objective(**arguments)
