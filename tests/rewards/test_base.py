"""Test what every reward function promises, and the error when it breaks its promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_itp.errors import RewardError
from hf_itp.rewards import CallableReward

pytestmark = pytest.mark.oldest


def returning(rewards):
    def fixed_reward(prompts, completions, **kwargs):
        return rewards

    return CallableReward(fixed_reward)


@pytest.mark.parametrize(
    "rewards",
    [
        [1, 2.5],
        (1.0, 2.5),
        np.array([1.0, 2.5]),
        [np.float64(1.0), torch.tensor(2.5)],
        torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True),
    ],
    ids=["list", "tuple", "array", "scalars", "tensor"],
)
def test_numbers_of_any_kind_become_float32(rewards):
    checked = returning(rewards)(["a", "b"], ["c", "d"])
    assert checked.dtype == torch.float32 and not checked.requires_grad
    assert checked.tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], r"`fixed_reward` must return one reward per response \(2\), got 1. Return one float per response"),
        ([1.0, 2.0, 3.0], r"one reward per response \(2\), got 3"),
        (torch.zeros(2, 1), r"shape \(2, 1\).* Return one float per response"),
        (torch.zeros(2, dtype=torch.complex64), r"complex64.* Return one float per response"),
        (1.0, r"shape \(\).* Return one float per response"),
        (None, r"must return floats, got a NoneType. Return one float per response"),
        ({"a": 1}, r"must return floats, got a dict. Return one float per response"),
        ("ab", r"got 'a' for response 0 of 2, .* Return a finite float for every response"),
        ([1.0, None], r"got None for response 1 of 2, .* Return a finite float for every response"),
        ([[1.0], [2.0, 3.0]], r"got \[1.0\] for response 0 of 2, .* Return a finite float"),
        ([1.0, float("nan")], r"got nan for response 1 of 2, so no candidate can be ranked. Return a finite"),
        ([float("-inf"), 1.0], r"got -inf for response 0 of 2, .* Return a finite float"),
        ([1.0, 1e300], r"got inf for response 1 of 2, .* Return a finite float"),
    ],
)
def test_rewards_that_cannot_be_ranked_are_refused(rewards, message):
    with pytest.raises(RewardError, match=message):
        returning(rewards)(["a", "b"], ["c", "d"])


def test_prompts_and_responses_have_to_pair_up():
    with pytest.raises(RewardError, match=r"1 prompts and 2 responses. Repeat each prompt once per response"):
        returning([1.0, 2.0])(["a"], ["c", "d"])


def test_nothing_to_score_gives_no_rewards():
    assert returning(None)([], []).shape == (0,)
