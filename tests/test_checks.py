"""Test that every message of a broken rule has one form, and that bounds are as stated."""

from __future__ import annotations

import math

import pytest

from hf_itp.checks import check_choice, check_count, check_number, check_positive
from hf_itp.errors import ArgumentError

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
