"""Test trade-offs against reference values, closed forms, each other and finite worlds."""

from __future__ import annotations

import math
import re

import pytest
import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional import alignment_tradeoff, beta_for_kl, finite_tradeoff
from hf_itp.functional.transforms import BestOfNOptimal, Exponential, Identity, Log, WorstOfNOptimal
from tests.functional.references import REFERENCE_VALUES

CASES = REFERENCE_VALUES["calibrated_procedures"]["cases"]
ALL = [Identity(), Log(), Exponential(5.0), Exponential(10.0), Exponential(-5.0), Exponential(-10.0)]


def transform_named(name):
    if match := re.fullmatch(r"exp\((-?\d+)u\)", name):
        return Exponential(float(match[1]))
    if match := re.fullmatch(r"(bon|won)_fp(\d)", name):
        return {"bon": BestOfNOptimal, "won": WorstOfNOptimal}[match[1]](int(match[2]), 1.0)
    return {"identity": Identity(), "log": Log()}[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['transform']}-{case['kl']}")
def test_reference_values_are_met(case):
    transform = transform_named(case["transform"])
    beta = beta_for_kl(transform, case["kl"])
    assert beta == pytest.approx(case["beta"], rel=1e-5)
    tradeoff = alignment_tradeoff(transform.at_beta(beta), beta)
    assert tradeoff.kl == pytest.approx(case["kl"], abs=1e-9)
    found = {
        "win_rate": tradeoff.win_rate,
        **{f"bon{n}": tradeoff.best_of_n_win_rate(n) for n in (2, 4)},
        **{f"won{n}": tradeoff.worst_of_n_win_rate(n) for n in (2, 4)},
    }
    for name, value in found.items():
        assert value == pytest.approx(case[name], abs=1e-6), name


@pytest.mark.parametrize("kl", [0.05, 0.1, 0.25, 0.5, 1.0, 2.0])
def test_each_procedures_own_optimum_is_the_best_at_every_divergence(kl):
    optima = [BestOfNOptimal(2, 1.0), BestOfNOptimal(4, 1.0), WorstOfNOptimal(2, 1.0), WorstOfNOptimal(4, 1.0)]
    found = {}
    for transform in [*ALL, *optima]:
        beta = beta_for_kl(transform, kl)
        found[str(transform)] = alignment_tradeoff(transform.at_beta(beta), beta)
    for optimum, measure in [
        (Identity(), lambda t: t.win_rate),
        (optima[0], lambda t: t.best_of_n_win_rate(2)),
        (optima[1], lambda t: t.best_of_n_win_rate(4)),
        (optima[2], lambda t: t.worst_of_n_win_rate(2)),
        (optima[3], lambda t: t.worst_of_n_win_rate(4)),
    ]:
        best = max(found, key=lambda name, measure=measure: measure(found[name]))
        assert measure(found[str(optimum)]) >= measure(found[best]) - 1e-9, (str(optimum), best)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_log_and_identity_have_their_closed_forms(beta):
    n = 1 + 1 / beta
    tradeoff = alignment_tradeoff("log", beta)
    assert tradeoff.kl == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-9)
    for rate in (tradeoff.win_rate, tradeoff.best_of_n_win_rate(3), tradeoff.best_of_n_win_rate(16)):
        assert rate == pytest.approx(n / (n + 1), abs=1e-9)
    assert alignment_tradeoff("identity", beta).win_rate == pytest.approx(
        1 / (-math.expm1(-1 / beta)) - beta, abs=1e-9
    )


def test_pessimism_of_one_half_is_best_of_two():
    """Papers on calibrated pessimism: density relu(v - 1 + sqrt(2 beta)) / beta, at beta = 1/2 that of best-of-2."""
    tradeoff = alignment_tradeoff("exponential", 50.0, t=5)
    rate = tradeoff.procedure_win_rate(lambda v: v / 0.5, lambda v: v**2)
    assert rate == pytest.approx(tradeoff.best_of_n_win_rate(2), abs=1e-12)


@pytest.mark.parametrize("transform", [Identity(), Log(), Exponential(10.0), Exponential(-10.0)])
def test_many_equal_responses_approach_the_continuum(transform):
    """A finite world and the integral differ by the correction for ties, which vanishes as 1/R."""
    beta = beta_for_kl(transform, 0.5)
    count = 4000
    world = finite_tradeoff(
        torch.full((count,), 1 / count, dtype=torch.float64), torch.arange(count).double(), transform, beta
    )
    continuum = alignment_tradeoff(transform, beta)
    assert world.kl == pytest.approx(continuum.kl, abs=2e-3)
    assert world.win_rate == pytest.approx(continuum.win_rate, abs=2e-3)
    assert world.best_of_n_win_rate(4) == pytest.approx(continuum.best_of_n_win_rate(4), abs=2e-3)
    assert world.worst_of_n_win_rate(4) == pytest.approx(continuum.worst_of_n_win_rate(4), abs=2e-3)


def test_finite_world_by_hand():
    """Three responses, two tied, are calibrated 0.25, 0.75, 0.75; the policy doubles the upper level's odds."""
    world = finite_tradeoff(
        torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 1.0]), "identity", beta=0.5 / math.log(2)
    )
    torch.testing.assert_close(world.policy, torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    assert world.win_rate == pytest.approx(1 / 3 * 0.25 + 2 / 3 * 0.75)
    # Best of 2: ours is below with 1/9, theirs with 1/4.
    assert world.best_of_n_win_rate(2) == pytest.approx(1 / 9 * 0.25 / 2 + 8 / 9 * (0.25 + 0.75 / 2))
    # Worst of 2: ours is above with 4/9, theirs with 1/4.
    assert world.worst_of_n_win_rate(2) == pytest.approx(5 / 9 * 0.75 / 2 + 4 / 9 * (0.75 + 0.25 / 2))
    assert world.kl == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment_tradeoff("identity", 0.0), "`beta` must be positive, got 0.0"),
        (lambda: beta_for_kl("identity", 0.0), "`kl` must be positive"),
        (lambda: beta_for_kl("identity", 11.0), "at most 10, got 11"),
        (lambda: alignment_tradeoff("identity", 1.0).best_of_n_win_rate(0), "`n` must be"),
        (lambda: finite_tradeoff(torch.tensor([0.5, 0.4]), torch.tensor([0.0, 1.0]), "log", 1.0), "sum to 1"),
        (lambda: finite_tradeoff(torch.tensor([1.0]), torch.tensor([0.0, 1.0]), "log", 1.0), "one probability per"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
