"""Test transforms and their estimates from counts: exact over the binomial law, ties and both signs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional.transforms import (
    BestOfNOptimal,
    Exponential,
    Function,
    Identity,
    Log,
    WorstOfNOptimal,
    get_transform,
    list_transforms,
)

INNER = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)


def binomial_mean(values, u, num_reference):
    """Write out the mean of a function of the counts."""
    values, counts = values.tolist(), range(num_reference + 1)
    means = [
        sum(math.comb(num_reference, s) * (p**s * (1 - p) ** (num_reference - s)) * values[s] for s in counts)
        for p in u.tolist()
    ]
    return torch.tensor(means, dtype=torch.float64)


@pytest.mark.parametrize("t", [5.0, 10.0])
def test_exponential_is_estimated_without_bias_where_the_plug_in_is_far_off(t):
    counts = torch.arange(33)
    truth = torch.exp(t * INNER)
    estimate = binomial_mean(Exponential(t).estimate(counts, 32), INNER, 32)
    plug_in = binomial_mean(torch.exp(t * counts / 32), INNER, 32)
    torch.testing.assert_close(estimate, truth, rtol=1e-3 * 1e-3, atol=0)
    worst = float(((plug_in - truth) / truth).max())
    assert worst > (0.4 if t == 10 else 0.1)


def test_negative_exponential_is_estimated_by_its_mirror():
    """The direct series alternates: it is 2 % off at u = 0.9 and 127 % at 0.99. The mirror is as accurate as |t|."""
    u = torch.cat([INNER, torch.tensor([0.99, 1.0], dtype=torch.float64)])
    transform = Exponential(-10.0)
    values = transform.estimate(torch.arange(33), 32)
    estimate = binomial_mean(values, u, 32)
    # The mirror's error is relative to e^(|t| (1 - u)), and so smallest where the value is.
    torch.testing.assert_close(estimate, transform(u), rtol=1e-6, atol=0)
    assert bool((values.diff() > 0).all()), "a better count is never worth less"
    assert bool((values <= -math.exp(-10) * (1 - 1e-9)).all()) and bool((values >= -1).all())


@pytest.mark.parametrize("transform", [Exponential(4.0), Exponential(-4.0), BestOfNOptimal(4, 0.2)])
def test_ties_are_averaged_over_even_chances(transform):
    """Compare with the mean over every way in which the ties could be broken."""
    num_reference, below, ties = 14, 6, 5
    outcomes = [below + sum(heads) for heads in itertools.product((0, 1), repeat=ties)]
    expected = transform.estimate(torch.tensor(outcomes), num_reference).mean()
    found = transform.estimate(torch.tensor([below]), num_reference, ties=torch.tensor([ties]))
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=0)


def test_tied_estimates_stay_unbiased_in_a_world_with_ties():
    """References below, at and above a reward are multinomial, and the mid-rank is the truth."""
    low, at, num_reference, t = 0.3, 0.4, 17, 5.0
    transform, mean = Exponential(t), 0.0
    for below in range(num_reference + 1):
        for equal in range(num_reference - below + 1):
            above = num_reference - below - equal
            chance = math.factorial(num_reference) / math.prod(map(math.factorial, (below, equal, above)))
            chance *= low**below * at**equal * (1 - low - at) ** above
            mean += chance * float(transform.estimate(torch.tensor(below), num_reference, torch.tensor(equal)))
    # A tie broken by a coin is below with probability at / 2: exactly the mid-rank.
    assert mean == pytest.approx(math.exp(t * (low + at / 2)), rel=1e-4)


def test_identity_counts_a_tie_half_and_log_is_clamped():
    counts, ties = torch.tensor([0, 3, 8]), torch.tensor([0, 2, 0])
    assert Identity().estimate(counts, 8, ties).tolist() == [0.0, 0.5, 1.0]
    expected = torch.tensor([1 / 8, 0.5, 1.0], dtype=torch.float64).log()
    torch.testing.assert_close(Log().estimate(counts, 8, ties), expected)


@pytest.mark.parametrize("transform", [BestOfNOptimal(2, 0.234), BestOfNOptimal(4, 0.1), WorstOfNOptimal(4, 0.2)])
def test_optima_are_estimated_without_noticeable_bias(transform):
    u, num_reference = torch.linspace(0, 1, 21, dtype=torch.float64), 100
    value = transform(u)
    span = value.max() - value.min()
    error = (transform.estimate_mean(u, num_reference) - value).abs().max() / span
    plug_in = binomial_mean(transform(torch.arange(101) / 100), u, num_reference)
    assert error < 2e-3
    assert (plug_in - value).abs().max() / span > 5 * error
    # Without more noise than the quantile itself has.
    assert transform.estimate_variance(u, num_reference).mean().sqrt() / span < 0.05


def test_variance_is_that_over_the_draw_of_references():
    """By hand for identity; for exponential(10) relative standard deviations of 1.098 and 0.571, from the table."""
    torch.testing.assert_close(Identity().estimate_variance(INNER, 32), INNER * (1 - INNER) / 32)
    u = torch.tensor([0.5, 0.9], dtype=torch.float64)
    relative = Exponential(10.0).estimate_variance(u, 32).sqrt() / torch.exp(10 * u)
    torch.testing.assert_close(relative, torch.tensor([1.098, 0.571], dtype=torch.float64), atol=6e-4, rtol=0)


@pytest.mark.parametrize(
    "transform", [Identity(), Log(), Exponential(5.0), Exponential(-10.0), BestOfNOptimal(2, 0.3)]
)
@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_log_partition_is_the_integral(transform, beta):
    scale = 40.0 if isinstance(transform, Exponential) and transform.t > 0 else 1.0
    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    slow = (transform(u) / (beta * scale)).logsumexp(0) - math.log(2_000_000)
    assert transform.log_partition(beta * scale) == pytest.approx(float(slow), abs=2e-6)


def test_optimal_transform_solves_its_equation():
    """Compare at a few points with sums over a plain grid."""
    n, beta = 3, 0.3
    transform = BestOfNOptimal(n, beta)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    density = (transform(u) / beta).softmax(0)
    below = density.cumsum(0) - density / 2
    right = (n * n * u ** (n - 1) * below ** (n - 1)).cumsum(0) / 100_000
    assert float((transform(u) - right).abs().max()) < 1e-4


def test_optimum_of_one_is_the_identity():
    torch.testing.assert_close(BestOfNOptimal(1, 0.5)(INNER), INNER)
    torch.testing.assert_close(WorstOfNOptimal(1, 0.5)(INNER), INNER)


def test_too_few_references_are_refused_with_the_number_that_would_do():
    with pytest.raises(ArgumentError, match=r"at least 32, got 16. Draw 32 .* exponential\(t=-10\)"):
        Exponential(-10).estimate(torch.tensor([1]), 16)


@pytest.mark.parametrize("counts", [[0.5], [-1], [9]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ArgumentError, match="whole numbers from 0 to num_reference=8"):
        Identity().estimate(torch.tensor(counts), 8)


def test_transforms_are_values_with_names():
    assert get_transform("exponential", t=10) == Exponential(10)
    assert get_transform(Log()) == Log()
    assert list_transforms() == ["identity", "log", "exponential", "best_of_n_optimal", "worst_of_n_optimal"]
    square = get_transform(torch.square)
    assert isinstance(square, Function)
    assert square.estimate(torch.tensor([4]), 8).tolist() == [0.25]


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (["exp"], {}, "one of 'identity', 'log'"),
        (["exponential"], {}, "`t` is missing"),
        (["identity"], {"t": 1}, "`t` is unknown"),
        (["exponential"], {"t": 0}, "not 0, got 0"),
        (["exponential"], {"t": math.nan}, "`t` must be finite"),
        (["best_of_n_optimal"], {"n": 0, "beta": 1.0}, "`n` must be an integer"),
        (["best_of_n_optimal"], {"n": 2, "beta": -1.0}, "`beta` must be positive"),
        ([Identity()], {"t": 1}, "is an object"),
        ([lambda u: -u], {}, "nondecreasing"),
        ([lambda u: u / 0], {}, "finite values"),
    ],
)
def test_bad_transforms_are_refused(arguments, fields, message):
    with pytest.raises(ArgumentError, match=message):
        get_transform(*arguments, **fields)


def test_what_is_no_transform_is_a_type_error():
    with pytest.raises(ArgumentTypeError, match="name, a Transform or a function"):
        get_transform(3)


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, -2.0, -10.0])
def test_fewest_references_allowed_leave_a_thousandth_of_bias_at_most(t):
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    transform, fewest = Exponential(t), math.ceil(3 * abs(t)) + 2
    assert float((transform.estimate_mean(u, fewest) / transform(u) - 1).abs().max()) < 1e-3
    with pytest.raises(ArgumentError, match=f"at least {fewest}"):
        transform.estimate_mean(u, fewest - 1)
