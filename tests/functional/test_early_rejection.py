"""Test the rule of speculative rejection against examples by hand."""

from __future__ import annotations

import pytest
import torch

from hf_itp.functional.early_rejection import num_rejected, rejected


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (0.5, {16: 8, 9: 4, 3: 1, 2: 1, 1: 0}),
        (0.25, {16: 4, 7: 1, 4: 1, 3: 0}),
        (0.29, {100: 29}),
        (0.99, {100: 99, 10: 9, 1: 0}),
        (0.0, {100: 0}),
    ],
)
def test_share_is_rounded_down_and_somebody_stays(share, counts):
    assert {count: num_rejected(count, share) for count in counts} == counts


def test_as_many_stay_as_are_to_be_returned():
    assert [num_rejected(count, 0.5, keep=3) for count in (8, 5, 4, 3, 2)] == [4, 2, 1, 0, 0]


def test_lowest_leave_and_of_equals_the_later_ones():
    assert rejected(torch.tensor([1.0, 5.0, 1.0, 1.0, 0.0]), share=0.6).tolist() == [False, False, True, True, True]
    assert not rejected(torch.tensor([2.0, 1.0]), share=0.0).any()
    assert rejected(torch.tensor([3.0]), share=0.9).tolist() == [False]
