from __future__ import annotations

import math

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError
from hf_itp.functional import calibrate_rewards
from tests.functional.references import doubles, half_tie_quantile, random_pools


def test_quantiles_agree_with_counting_and_ties_count_half():
    references = random_pools(400, seed=2)
    for pool, reference in zip(random_pools(400, seed=1), references, strict=True):
        rewards = pool + reference[:3]  # some of them tie with a reference for certain
        expected = [half_tie_quantile(reward, reference) for reward in rewards]
        assert calibrate_rewards(doubles(rewards), doubles(reference)).tolist() == pytest.approx(expected, abs=1e-15)


def test_each_prompt_has_its_own_references():
    rewards = torch.zeros(2, 2, 1)
    references = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]], [[-1.0, 1.0], [0.0, 1.0]]])
    assert calibrate_rewards(rewards, references).tolist() == [[[1.0], [0.0]], [[0.5], [0.25]]]


def test_increasing_maps_change_nothing():
    generator = torch.Generator().manual_seed(0)
    rewards, references = torch.randn(4, 6, generator=generator), torch.randn(4, 50, generator=generator)
    quantiles = calibrate_rewards(rewards, references)
    mapped = calibrate_rewards(rewards.double().exp() * 3 - 1, references.double().exp() * 3 - 1)
    assert torch.equal(mapped.float(), quantiles)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_result_is_precise_enough_for_any_number_of_references(dtype, expected):
    assert calibrate_rewards(torch.ones(3).to(dtype), torch.zeros(5)).dtype == expected


def test_rewards_that_are_not_contiguous_are_taken():
    rewards = torch.arange(6.0).reshape(3, 2).T
    assert calibrate_rewards(rewards, torch.full((2, 1), 2.0)).tolist() == [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]]


def test_no_table_of_all_pairs_is_built():
    """Such a table would take 80 GB."""
    rewards = torch.arange(100_000, dtype=torch.float64)
    assert calibrate_rewards(rewards, rewards)[-1].item() == pytest.approx(1 - 0.5e-5)


@pytest.mark.parametrize(
    ("rewards", "references", "error", "remedy"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 4), ArgumentError, "Give each prompt its row"),
        (torch.zeros(3), torch.zeros(1, 4), ArgumentError, "Give each prompt its row"),
        (torch.zeros(2, 3), torch.zeros(2, 0), ArgumentError, "`reference_rewards`.*Score at least one"),
        (torch.zeros(3), torch.tensor([0.0, math.nan]), RewardError, "`reference_rewards` must be finite, got nan"),
        (torch.tensor([math.nan]), torch.zeros(2), RewardError, "`rewards` must be finite, got nan"),
        (torch.zeros(3), [0.0], ArgumentTypeError, "`reference_rewards`.*Wrap it in torch.tensor"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(rewards, references, error, remedy):
    with pytest.raises(error, match=remedy):
        calibrate_rewards(rewards, references)
