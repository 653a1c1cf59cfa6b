"""Test that every message of a broken rule has one form, and that bounds are as stated."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from hf_itp.arrays import as_tensor
from hf_itp.checks import check_choice, check_count, check_number, check_positive, check_rewards
from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError

REMEDY = "Pass e.g. beta=0.1."


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_positive("beta", -1, REMEDY), "`beta` must be positive, got -1. Pass e.g. beta=0.1."),
        (lambda: check_positive("beta", math.nan, REMEDY), "`beta` must be finite, got nan. Pass e.g. beta=0.1."),
        (lambda: check_positive("beta", "1", REMEDY), "`beta` must be a number, got '1'. Pass e.g. beta=0.1."),
        (lambda: check_number("t", 51, "Lower it.", "below 50", lambda t: t < 50), "`t` must be below 50, got 51. L"),
        (lambda: check_count("n", 0, 1, "Draw."), "`n` must be an integer of at least 1, got 0. Draw."),
        (
            lambda: check_count("n", 5, 1, "Draw.", 4, "the pool"),
            "`n` must be an integer from 1 to 4 (the pool), got 5.",
        ),
        (lambda: check_count("n", 2.0, 1, "Draw."), "got 2.0. Give a whole number. Draw."),
        (lambda: check_choice("how", "x", ("a", "b")), "`how` must be one of 'a', 'b', got 'x'. Choose one of them."),
    ],
)
def test_broken_rule_is_named_with_its_value_and_remedy(check, message):
    with pytest.raises(ArgumentError) as caught:
        check()
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["1", 1.0, True, None])
def test_what_is_no_integer_is_caught_as_either_builtin(value):
    for builtin in (ValueError, TypeError):
        with pytest.raises(builtin):
            check_count("n", value, 1, "Draw.")


def test_integer_beyond_the_range_of_a_float_is_a_number():
    assert check_positive("beta", 10**400, REMEDY) == 10**400


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.1, 0.2], torch.float64),
        ([1, 2], torch.int64),
        ([True, False], torch.bool),
        (np.array([0.1], dtype=np.float32), torch.float32),
        (np.array([0.1], dtype=np.float16), torch.float16),
        (np.array([0.1], dtype=">f8"), torch.float64),
        (np.array([0.1], dtype=np.longdouble), torch.float64),
        (np.array([3], dtype=np.uint16), torch.int64),
        (np.array([3], dtype=np.uint64), torch.int64),
        ([torch.tensor(0.1), torch.tensor(0.2)], torch.float32),
        ([torch.tensor(0.1), 0.2], torch.float64),
        (pd.Series([0.1, 0.2], index=[5, 3]), torch.float64),
        (pd.Series([1, 2], dtype="Int64"), torch.int64),
        (datasets.Dataset.from_dict({"reward": [0.1, 0.2]})["reward"], torch.float64),
        (0.5, torch.float64),
    ],
)
def test_numbers_of_every_kind_become_a_tensor_of_their_own_precision(values, dtype):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        tensor = as_tensor(values, "rewards")
    finally:
        torch.set_default_dtype(default)
    assert tensor.dtype == dtype
    assert tensor.tolist() == pytest.approx([float(v) for v in values] if np.ndim(values) else values, rel=1e-3)


def test_tensor_is_not_copied_and_an_array_is():
    tensor, array = torch.zeros(2), np.zeros(2)
    assert as_tensor(tensor, "rewards") is tensor
    as_tensor(array, "rewards")[0] = 1
    assert array.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (None, "got a NoneType"),
        ({"a": 1}, "got a dict"),
        ([[1.0, 2.0], [3.0, None]], r"got None at \[1\]\[1\]"),
        ([["a"]], r"got 'a' at \[0\]\[0\]"),
        ([[1.0], [2.0, 3.0]], "got rows of different lengths"),
        ([torch.zeros(1), torch.zeros(2)], "got rows of different lengths"),
        (np.array([1.0, None]), "got a ndarray of dtype object"),
        (pd.Series([True, None], dtype="boolean"), "got a Series of dtype boolean"),
        (np.ma.masked_array([1.0], mask=[True]), "got masked entries in a MaskedArray"),
    ],
)
def test_what_is_no_tensor_is_named_with_its_place(values, found):
    with pytest.raises(
        ArgumentTypeError, match=f"`rewards` must be real numbers.*{found}.*Give every candidate its number"
    ):
        as_tensor(values, "rewards")


def test_missing_number_of_a_series_is_a_reward_that_is_nan():
    with pytest.raises(RewardError, match="`rewards` must be finite, got nan for candidate 1"):
        check_rewards(pd.Series([0.5, None]))
