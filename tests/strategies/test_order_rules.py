"""Test the rules that look at the order of rewards, and what their fields refuse."""

from __future__ import annotations

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.strategies import BestOfN, BestOfPoisson, SoftBestOfN, TopQuantile, WorstOfN


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_best_of_n_returns_the_highest_in_order():
    assert BestOfN().select(torch.tensor([0.1, 0.9, -1.0, 0.5]), 4, seeded()).tolist() == [1, 3, 0, 2]


def test_worst_of_n_returns_the_lowest_in_order():
    assert WorstOfN().select(torch.tensor([0.1, 0.9, -1.0, 0.5]), 4, seeded()).tolist() == [2, 0, 3, 1]


def test_top_quantile_exhausts_the_top_before_it_goes_on_by_reward():
    picks = TopQuantile(2).select(torch.tensor([0.1, 0.9, -1.0, 0.5]).expand(200, 4), 4, seeded())
    assert {tuple(row) for row in picks.tolist()} == {(1, 3, 0, 2), (3, 1, 0, 2)}


@pytest.mark.parametrize("multiplier", [4, 4.5, 1e9])
def test_multiplier_of_n_and_above_is_best_of_n(multiplier):
    rewards = torch.tensor([[0.1, 0.9, 0.9, 0.5]])
    assert torch.equal(TopQuantile(multiplier).probabilities(rewards), BestOfN().probabilities(rewards))


def test_best_of_poisson_depends_on_the_order_drawn():
    law = BestOfPoisson(0.5).probabilities(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    assert law[0, 0] > 0.6 and law[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("strategy", "value", "error", "remedy"),
    [
        (SoftBestOfN, 0, ArgumentError, "Choose a temperature on the scale of the rewards"),
        (SoftBestOfN, "1", ArgumentTypeError, "Choose a temperature on the scale of the rewards"),
        (TopQuantile, 0.5, ArgumentError, "Choose at least 1"),
        (TopQuantile, None, ArgumentTypeError, "Choose at least 1"),
        (BestOfPoisson, -3.0, ArgumentError, "Choose about the number of candidates"),
        (BestOfPoisson, float("inf"), ArgumentError, "Choose about the number of candidates"),
    ],
)
def test_bad_field_is_refused_with_a_remedy(strategy, value, error, remedy):
    with pytest.raises(error, match=remedy):
        strategy(value)
