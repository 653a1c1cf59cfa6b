"""Test that `None` is "no reward" in every reward, and that NaN is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_itp.calibration import CalibratedReward, RewardCalibrator
from hf_itp.errors import RewardError
from hf_itp.rewards import CallableReward, RewardEnsemble, RewardFunction, as_reward_function

PROMPTS, RESPONSES = ["how"] * 3, ["a", "b", "c"]


def returning(rewards):
    def fixed(prompts, completions, **kwargs):
        return rewards

    return CallableReward(fixed)


def same(rewards, expected):
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float32), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    "returned",
    [[1.0, None, 0.25], (1, None, np.float32(0.25)), np.array([1.0, None, 0.25], dtype=object)],
    ids=["list", "tuple", "array of objects"],
)
def test_none_is_no_reward(returned):
    same(returning(returned)(PROMPTS, RESPONSES), [1.0, math.nan, 0.25])
    assert returning(returned)(PROMPTS, completions=RESPONSES) == [1.0, None, 0.25], "as TRL reads it"


@pytest.mark.parametrize(
    "returned", [[1.0, None, math.nan], np.array([1.0, 2.0, math.nan]), torch.tensor([1.0, 2.0, math.nan])]
)
def test_nan_is_an_error_that_names_the_response(returned):
    with pytest.raises(RewardError, match=r"`fixed` must return finite rewards, got nan for response 2 of 3.*or None"):
        returning(returned)(PROMPTS, RESPONSES)


def test_own_reward_functions_may_abstain():
    class Own(RewardFunction):
        name = "own"

        def score(self, prompts, responses, response_ids=None, /):
            return [None if response == "b" else 1.0 for response in responses]

    same(Own()(PROMPTS, RESPONSES), [1.0, math.nan, 1.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2.0, 5.0, 7.0, math.nan]),
        ({"aggregate": "minimum"}, [1.0, 5.0, 7.0, math.nan]),
        ({"aggregate": "mean_minus_std"}, [1.0, 5.0, 7.0, math.nan]),
    ],
)
def test_ensemble_judges_by_the_members_that_have_a_reward(options, expected):
    first, second = returning([1.0, None, 7.0, None]), returning([3.0, 5.0, None, None])
    same(RewardEnsemble([first, second], **options)(["how"] * 4, list("abcd")), expected)


def test_complete_rewards_are_aggregated_to_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    members = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    rewards = as_reward_function([returning(row.tolist()) for row in members])(["how"] * 40, ["a"] * 40)
    # each member's rewards are float32
    expected = torch.std_mean(members.float().double(), dim=0, correction=0)[1].float()
    assert rewards.equal(expected)


def test_response_without_a_reward_has_no_calibrated_one():
    calibrator = RewardCalibrator(["how"], torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    same(CalibratedReward(returning([2.5, None, -1.0]), calibrator)(PROMPTS, RESPONSES), [0.75, math.nan, 0.0])
    same(CalibratedReward(returning([None] * 3), calibrator)(PROMPTS, RESPONSES), [math.nan] * 3)
