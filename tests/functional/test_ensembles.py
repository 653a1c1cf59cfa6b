from __future__ import annotations

import statistics

import pytest
import torch

from hf_itp.errors import ArgumentError, RewardError
from hf_itp.functional import aggregate_rewards

MEMBERS = [[1.0, 5.0, -2.0], [3.0, 5.0, 0.5], [8.0, 5.0, 0.0]]
COLUMNS = list(zip(*MEMBERS, strict=True))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [statistics.mean(column) for column in COLUMNS]),
        ("minimum", [min(column) for column in COLUMNS]),
        ("mean_minus_std", [statistics.mean(column) - 0.5 * statistics.pstdev(column) for column in COLUMNS]),
    ],
)
def test_members_are_combined_per_response(how, expected):
    assert aggregate_rewards(torch.tensor(MEMBERS), how, std_multiple=0.5).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("how", ["mean", "minimum", "mean_minus_std"])
def test_single_member_decides_alone(how):
    assert aggregate_rewards(torch.tensor([[0.5, -1.5]]), how).tolist() == [0.5, -1.5]


@pytest.mark.parametrize(
    ("rewards", "options", "error", "remedy"),
    [
        (torch.zeros(3), {}, ArgumentError, "Stack the rewards of the members"),
        (torch.zeros(0, 3), {}, ArgumentError, "Stack the rewards of the members"),
        (torch.tensor([[float("nan")]]), {}, RewardError, "Return a finite float"),
        (torch.zeros(2, 3), {"how": "median"}, ArgumentError, "Choose one of them"),
        (torch.zeros(2, 3), {"how": "mean_minus_std", "std_multiple": -1}, ArgumentError, "Use how='mean'"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(rewards, options, error, remedy):
    with pytest.raises(error, match=remedy):
        aggregate_rewards(rewards, **options)
