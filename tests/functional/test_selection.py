"""Test drawing without replacement: the exact law, the order of what has no probability, the random numbers used."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional import effective_sample_size, sample_without_replacement
from tests.global_rng import global_rng_watched
from tests.worlds.odds import assert_follows


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def successive_law(law: list[float], k: int) -> dict[tuple[int, ...], float]:
    """Return the probability of each ordered draw, where every pick follows the law restricted to what is left."""
    outcomes = {}
    for picks in itertools.permutations(range(len(law)), k):
        probability, left = 1.0, sum(law)
        for pick in picks:
            probability, left = probability * law[pick] / left, left - law[pick]
        outcomes[picks] = probability
    return outcomes


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_ordered_draws_follow_successive_sampling(k, seed=0):
    """Gives a false alarm with odds below 1e-6."""
    law = [0.5, 0.3, 0.15, 0.05]
    picks = sample_without_replacement(torch.tensor(law).expand(60_000, 4), k, seeded(seed))
    assert_follows(map(tuple, picks.tolist()), successive_law(law, k))


def test_weights_need_not_sum_to_one(seed=0):
    """Gives a false alarm with odds below 1e-6."""
    weights = torch.tensor([30.0, 10.0]).expand(20_000, 2)
    assert_follows(sample_without_replacement(weights, 1, seeded(seed))[:, 0].tolist(), {0: 0.75, 1: 0.25})


def test_zero_probability_is_taken_only_after_the_support_and_by_preference():
    law = torch.tensor([0.0, 0.6, 0.0, 0.4, 0.0]).expand(500, 5)
    picks = sample_without_replacement(
        law, 5, seeded(), then_by=torch.tensor([2.0, 9.0, 3.0, 0.0, 1.0]).expand(500, 5)
    )
    assert set(map(tuple, picks[:, :2].tolist())) == {(1, 3), (3, 1)}
    assert set(map(tuple, picks[:, 2:].tolist())) == {(2, 0, 4)}


def test_rows_with_and_without_enough_support_are_each_served():
    law = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    picks = sample_without_replacement(law, 2, seeded(), then_by=torch.tensor([7.0, 8.0, 9.0]).expand(3, 3))
    assert sorted(picks[0].tolist()) == [0, 1]
    assert picks[1].tolist() == [0, 2]
    assert len(set(picks[2].tolist())) == 2


@pytest.mark.parametrize("then_by", [None, torch.zeros(30_000, 4)])
def test_ties_in_preference_come_in_random_order(then_by, seed=0):
    """Gives a false alarm with odds below 1e-6."""
    law = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(30_000, 4)
    picks = sample_without_replacement(law, 3, seeded(seed), then_by=then_by)
    assert (picks[:, 0] == 0).all()
    expected = {pair: 1 / 6 for pair in itertools.permutations((1, 2, 3), 2)}
    assert_follows(map(tuple, picks[:, 1:].tolist()), expected)


def test_tie_at_the_edge_of_what_is_returned_is_broken_at_random(seed=0):
    """Gives a false alarm with odds below 1e-6."""
    law = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).expand(30_000, 6)
    then_by = torch.tensor([0.0, 5.0, 2.0, 2.0, 2.0, 2.0]).expand(30_000, 6)
    picks = sample_without_replacement(law, 3, seeded(seed), then_by=then_by)
    assert_follows(map(tuple, picks.tolist()), {(0, 1, last): 0.25 for last in (2, 3, 4, 5)})


def test_tiny_probabilities_do_not_underflow():
    law = torch.tensor([1e-300, 0.0, 1.0], dtype=torch.float64)
    assert sample_without_replacement(law, 3, seeded(), then_by=torch.tensor([0.0, 9.0, 0.0])).tolist() == [2, 0, 1]


def test_same_seed_gives_the_same_draws_and_leaves_the_global_numbers_alone():
    law = torch.rand(5, 6, generator=seeded())
    with global_rng_watched():
        first, second = (sample_without_replacement(law, 3, seeded(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sample_without_replacement(law, 3, seeded(8)))


@pytest.mark.uses_global_rng
def test_without_a_generator_the_global_numbers_are_used():
    law = torch.full((100, 8), 0.125)
    before = torch.get_rng_state()
    first = sample_without_replacement(law, 2)
    assert not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    assert torch.equal(first, sample_without_replacement(law, 2))


def test_one_uniform_number_is_used_per_entry():
    """So the number of returned entries changes nothing that is drawn afterwards."""
    states = []
    for k in (1, 2, 5):
        generator = seeded()
        sample_without_replacement(torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]]), k, generator)
        states.append(generator.get_state())
    expected = seeded()
    torch.rand(1, 5, dtype=torch.float64, generator=expected)
    assert all(torch.equal(state, expected.get_state()) for state in states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_generator_may_live_on_another_device():
    law = torch.tensor([0.0, 1.0], device="cuda")
    picks = sample_without_replacement(law, 2, seeded(), then_by=torch.tensor([1.0, 0.0]))
    assert picks.device.type == "cuda" and picks.tolist() == [1, 0]


def test_empty_batch_gives_an_empty_batch():
    assert sample_without_replacement(torch.empty(0, 4), 2, seeded()).shape == (0, 2)


@pytest.mark.parametrize(
    ("probabilities", "k", "error", "remedy"),
    [
        ([0.5, 0.5], 1, ArgumentTypeError, "Wrap it in torch.tensor"),
        (torch.tensor(1.0), 1, ArgumentError, "Ask for fewer indices"),
        (torch.tensor([1.0]), 0, ArgumentError, "Ask for fewer indices"),
        (torch.tensor([1.0]), 2, ArgumentError, "Ask for fewer indices"),
        (torch.tensor([0.5, -0.5]), 1, ArgumentError, "Return a law from"),
        (torch.tensor([0.5, math.nan]), 1, ArgumentError, "Return a law from"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1, ArgumentError, "Return a law from"),
    ],
)
def test_what_is_no_law_is_refused(probabilities, k, error, remedy):
    with pytest.raises(error, match=remedy):
        sample_without_replacement(probabilities, k)


def test_effective_sample_size_counts_equal_shares():
    laws = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.7, 0.3, 0.0, 0.0]])
    assert effective_sample_size(laws).tolist() == pytest.approx([4, 2, 1, 1 / 0.58])
