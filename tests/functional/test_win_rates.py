"""Test win rates and divergences from samples: all subsets written out, and the truth within its standard error."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional import (
    best_of_n_win_rate,
    finite_tradeoff,
    kl_k1,
    kl_k3,
    sequence_log_ratios,
    win_rate,
    worst_of_n_win_rate,
)
from hf_itp.functional.win_rates import Estimate, student_quantile


def beats(ours, theirs):
    return float(ours > theirs) + 0.5 * float(ours == theirs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_estimates_are_means_over_all_subsets(n):
    generator = torch.Generator().manual_seed(n)
    ours = torch.randint(0, 4, (3, 5), generator=generator).double()
    theirs = torch.randint(0, 4, (3, 6), generator=generator).double()
    for function, pick in ((best_of_n_win_rate, max), (worst_of_n_win_rate, min)):
        rows = []
        for mine, other in zip(ours.tolist(), theirs.tolist(), strict=True):
            pairs = itertools.product(itertools.combinations(mine, n), itertools.combinations(other, n))
            wins = [beats(pick(a), pick(b)) for a, b in pairs]
            rows.append(sum(wins) / len(wins))
        found = function(ours, theirs, n)
        assert found.mean == pytest.approx(sum(rows) / 3)
        assert found.standard_error == pytest.approx(float(torch.tensor(rows).double().std()) / math.sqrt(3))


def test_best_of_one_is_the_win_rate():
    ours, theirs = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0, 3.0]])
    assert win_rate(ours, theirs).mean == pytest.approx((0 + 2.5 / 3) / 2)
    assert math.isnan(win_rate(ours, theirs).standard_error)


def test_interval_covers_the_truth_of_a_finite_world(seed=0):
    """
    Draw 1,000 worlds of 50 prompts. The number of 95 % intervals that cover the truth is binomial. If each covers it
    with 93.5 to 95.5 %, fewer than 89 % or more than 98.5 % do with odds below 1e-6 (20,000 other worlds: 94.9 %).
    """
    world = finite_tradeoff(torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.0, 1.0, 1.0, 2.0]), "identity", 0.3)
    truth, generator = world.best_of_n_win_rate(2), torch.Generator().manual_seed(seed)
    covered = 0
    for _ in range(1000):
        ours = world.rewards[torch.multinomial(world.policy, 50 * 4, True, generator=generator)].view(50, 4)
        theirs = world.rewards[torch.multinomial(world.reference, 50 * 6, True, generator=generator)].view(50, 6)
        low, high = best_of_n_win_rate(ours, theirs, 2).interval
        covered += low <= truth <= high
    assert 0.89 <= covered / 1000 <= 0.985


def test_more_than_was_drawn_is_refused():
    with pytest.raises(ArgumentError, match=r"`n` must be an integer from 1 to 2 .*, got 3"):
        best_of_n_win_rate(torch.zeros(1, 2), torch.zeros(1, 4), 3)


def test_divergence_estimates_are_unbiased_on_a_finite_law():
    """The mean of both estimates over the policy's law is the divergence."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    ratios = (policy / reference).log()
    truth = float((policy * ratios).sum())
    for estimate in (kl_k1, kl_k3):
        means = torch.tensor([estimate(ratio.view(1)).mean for ratio in ratios]).double()
        assert float((policy * means).sum()) == pytest.approx(truth)


def test_log_ratio_of_a_response_ignores_padding():
    logprobs = torch.tensor([[-1.0, -2.0, -torch.inf]])
    ref_logprobs = torch.tensor([[-1.5, -2.5, -torch.inf]])
    mask = torch.tensor([[1, 1, 0]])
    assert sequence_log_ratios(logprobs, ref_logprobs, mask).tolist() == [1.0]
    with pytest.raises(ArgumentError, match="one shape"):
        sequence_log_ratios(logprobs, ref_logprobs[:, :2], mask)


def test_interval_from_few_prompts_is_students():
    """Compare with the tables of Student's t; a normal 95 % interval would cover only 86 % of the time."""
    estimate = Estimate.over_prompts(torch.tensor([0.4, 0.5, 0.45, 0.6]))
    reach = 3.182446 * float(torch.tensor([0.4, 0.5, 0.45, 0.6]).std()) / 2
    low, high = estimate.interval
    assert (low, high) == pytest.approx((estimate.mean - reach, estimate.mean + reach), abs=1e-6)
    tables = {1: 12.7062, 2: 4.3027, 5: 2.5706, 29: 2.0452, 30: 2.0423, 100: 1.9840, 120: 1.9799, 100_000: 1.9600}
    for degrees, value in tables.items():
        assert student_quantile(degrees) == pytest.approx(value, abs=6e-5)
