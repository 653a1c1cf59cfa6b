"""Test the laws of rejection sampling against reference values, enumeration and simulation."""

from __future__ import annotations

import math

import pytest
import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional import (
    acceptance_probabilities,
    average_first_accept_law,
    first_accept_law,
    no_acceptance_probability,
    pessimism,
    rejection_bound,
    rejection_law,
)
from tests.functional.references import REFERENCE_VALUES, doubles, first_accepts, first_accepts_over_orders
from tests.worlds.odds import assert_follows

CASES = REFERENCE_VALUES["pessimism"]["cases"]


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"beta={case['beta']}")
def test_reference_values_are_met(case):
    rewards = doubles(case["rewards"])
    weights, _ = pessimism(rewards, case["beta"])
    bound = rejection_bound(rewards, weights, case["beta"], case["r_max"])
    assert bound.item() == pytest.approx(case["M"], abs=1e-10)
    law, fallback = average_first_accept_law(acceptance_probabilities(weights, bound))
    assert law.tolist() == pytest.approx(case["same_pool_first_accept"], abs=1e-11)
    assert fallback.item() == 0


def test_bound_is_that_of_the_formula():
    rewards = uniforms(50, 10)
    weights, normalizer = pessimism(rewards, 0.1)
    torch.testing.assert_close(rejection_bound(rewards, weights, 0.1, 1.5), (1.5 - normalizer) / 0.1)
    assert torch.equal(rejection_bound(rewards, weights, 0.1), weights.amax(dim=-1))


def test_reward_bound_at_or_below_a_normalizer_is_refused():
    rewards = torch.tensor([[0.0, 0.1], [5.0, 5.0]])
    weights, _ = pessimism(rewards, 0.5)
    with pytest.raises(ArgumentError, match=r"\(up to 4\.5\).*Set it to the largest reward"):
        rejection_bound(rewards, weights, 0.5, 4.5)
    assert (rejection_bound(rewards, weights, 0.5, 4.6) > 0).all()


def test_acceptance_is_weight_over_bound_cut_at_one():
    weights, bound = doubles([[4.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), doubles([2.0, 4.0])
    assert acceptance_probabilities(weights, bound).tolist() == [[1.0, 0.5, 0.0], [0.5, 0.25, 0.0]]
    assert acceptance_probabilities(weights).tolist() == [[1.0, 0.25, 0.0], [1.0, 0.5, 0.0]]


@pytest.mark.parametrize("reward_bound", [None, 0.4, 3.0])
def test_drawing_with_replacement_until_acceptance_follows_its_law(reward_bound, seed=0):
    """Gives a false alarm with odds below 1e-6."""
    rewards = doubles([1.0, 0.6, 0.5, 0.1, -0.3])
    weights, _ = pessimism(rewards, 0.5)
    bound = rejection_bound(rewards, weights, 0.5, reward_bound)
    accept = acceptance_probabilities(weights, bound)
    generator = torch.Generator().manual_seed(seed)
    proposals = torch.randint(0, 5, (200_000,), generator=generator)
    accepted = torch.rand(200_000, dtype=torch.float64, generator=generator) < accept[proposals]
    law = rejection_law(weights, bound)
    assert_follows(proposals[accepted].tolist(), dict(enumerate(law.tolist())))
    assert law.sum().item() == pytest.approx(1)


def test_unclipped_law_is_weights_over_n():
    weights, _ = pessimism(uniforms(30, 8), 0.05)
    torch.testing.assert_close(rejection_law(weights), weights / 8)
    torch.testing.assert_close(rejection_law(weights, weights.amax(dim=-1)), weights / 8)


def test_first_accept_law_agrees_with_the_loop():
    acceptance = uniforms(40, 9)
    acceptance[0, 4], acceptance[1, 2] = 1.0, 0.0
    law, fallback = first_accept_law(acceptance)
    for row in range(40):
        expected, expected_fallback = first_accepts(acceptance[row].tolist())
        assert law[row].tolist() == pytest.approx(expected, abs=1e-15)
        assert fallback[row].item() == pytest.approx(expected_fallback, abs=1e-15)


def test_without_proposals_the_fallback_is_certain():
    law, fallback = first_accept_law(torch.empty(3, 0))
    assert law.shape == (3, 0) and fallback.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_average_over_orders_agrees_with_enumeration(size):
    acceptance = uniforms(6, size, seed=size)
    acceptance[0], acceptance[1, 0], acceptance[2, : size // 2], acceptance[3] = 1.0, 1.0, 0.0, 0.0
    law, fallback = average_first_accept_law(acceptance)
    for row in range(6):
        assert law[row].tolist() == pytest.approx(first_accepts_over_orders(acceptance[row].tolist()), abs=1e-12)
    torch.testing.assert_close(fallback, (1 - acceptance).prod(dim=-1))


def test_average_over_orders_does_not_depend_on_how_the_work_is_cut(monkeypatch):
    acceptance = uniforms(3, 4, 25)
    whole, _ = average_first_accept_law(acceptance)
    monkeypatch.setattr("hf_itp.functional.rejection._CHUNK", 60)
    torch.testing.assert_close(average_first_accept_law(acceptance)[0], whole)


def test_average_over_orders_is_a_law_on_large_pools():
    acceptance = acceptance_probabilities(pessimism(uniforms(5, 1000), 0.2)[0])
    law, fallback = average_first_accept_law(acceptance)
    torch.testing.assert_close(law.sum(dim=-1) + fallback, torch.ones(5, dtype=torch.float64))
    # Equal candidates get equal parts, whatever the integral.
    law, _ = average_first_accept_law(torch.full((1000,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(law, torch.full_like(law, (1 - 0.99**1000) / 1000))


def test_average_over_orders_leans_to_the_top():
    weights = doubles([3.0, 2.0, 1.0, 0.0])
    averaged, drawn = average_first_accept_law(acceptance_probabilities(weights))[0], rejection_law(weights)
    assert averaged[0] > drawn[0] and averaged[2] < drawn[2]


def test_no_acceptance_is_at_most_exponentially_likely():
    rate = doubles([0.5, 1.0, 0.01])
    assert no_acceptance_probability(rate, 3).tolist() == pytest.approx([0.125, 0.0, 0.99**3])
    assert all(no_acceptance_probability(rate, 700) <= torch.exp(-700 * rate))


@pytest.mark.parametrize("law", [first_accept_law, average_first_accept_law])
@pytest.mark.parametrize("acceptance", [[0.5, 1.1], [-0.1, 0.5]])
def test_acceptance_outside_the_unit_interval_is_refused(law, acceptance):
    with pytest.raises(ArgumentError, match="Divide the weights by their bound"):
        law(doubles(acceptance))


def test_nan_acceptance_is_refused_by_name():
    with pytest.raises(ValueError, match="`acceptance` must be finite, got nan for candidate 0"):
        first_accept_law(doubles([math.nan]))
