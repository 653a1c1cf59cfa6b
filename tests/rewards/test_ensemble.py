"""Test the rewards of an ensemble against rewards by hand."""

from __future__ import annotations

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError
from hf_itp.rewards import CallableReward, RewardEnsemble


def member(name, rewards):
    def function(prompts, completions, **kwargs):
        return rewards

    function.__name__ = name
    return CallableReward(function)


FIRST, SECOND = member("first", [1.0, 4.0]), member("second", [3.0, -2.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2.0, 1.0]),
        ({"aggregate": "minimum"}, [1.0, -2.0]),
        ({"aggregate": "mean_minus_std"}, [1.0, -2.0]),
        ({"aggregate": "mean_minus_std", "penalty": 0.5}, [1.5, -0.5]),
    ],
)
def test_rewards_are_aggregated_response_by_response(options, expected):
    rewards = RewardEnsemble([FIRST, SECOND], **options)(["how", "how"], ["so", "yes"])
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == expected


def test_single_member_is_itself():
    assert RewardEnsemble([FIRST], aggregate="mean_minus_std")(["how"] * 2, ["so", "yes"]).tolist() == [1.0, 4.0]


def test_members_see_prompts_responses_and_ids():
    seen = []

    def recording(prompts, completions, completion_ids, **kwargs):
        seen.append((prompts, completions, completion_ids))
        return [0.0]

    RewardEnsemble([CallableReward(recording)] * 2)(["how"], ["so"], [torch.tensor([4])])
    assert seen == [(["how"], ["so"], [[4]])] * 2


def test_name_lists_the_members():
    assert RewardEnsemble([FIRST, SECOND], "minimum").name == "minimum(first, second)"


def test_broken_member_is_the_one_named():
    with pytest.raises(RewardError, match="`broken` must return finite rewards, got nan for response 0 of 1"):
        RewardEnsemble([CallableReward(lambda prompts, completions: [1.0]), member("broken", [float("nan")])])(
            ["how"], ["so"]
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ArgumentError, "Pass a reward model"),
        ((["org/model"],), ArgumentTypeError, r"Member 0 .* got a str. Wrap it in `as_reward_function"),
        (([FIRST, print],), ArgumentTypeError, r"Member 1 .* Wrap it in `as_reward_function"),
        (([FIRST], "median"), ArgumentError, "mean_minus_std"),
        (([FIRST], "mean_minus_std", -1.0), ArgumentError, "Use aggregate='mean' to ignore disagreement"),
    ],
)
def test_ensemble_that_means_nothing_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RewardEnsemble(*arguments)
