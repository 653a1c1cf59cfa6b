"""
Test random numbers that belong to a place: reproducible, uniform, and unrelated between neighbouring places.
"""

from __future__ import annotations

import torch
from scipy import stats

from hf_itp.functional.kernels.random import gumbel, mix, signed64, uniform
from tests.worlds.odds import FALSE_ALARM


def reference_mix(bits: int) -> int:
    """Compute the same finalizer in Python's unbounded integers."""
    bits &= 2**64 - 1
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
    return bits ^ (bits >> 31)


def test_mix_equals_unbounded_integer_arithmetic():
    values = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789], dtype=torch.long)
    expected = [signed64(reference_mix(value)) for value in values.tolist()]
    assert mix(values).tolist() == expected


def test_number_is_a_function_of_key_step_and_index_alone():
    keys = torch.tensor([11, -5, 2**62])
    table = uniform(keys[:, None], 3, torch.arange(10))
    assert table[1, 7] == uniform(keys[1], 3, torch.tensor(7))
    assert uniform(keys.flip(0)[:, None], 3, torch.arange(10)).equal(table.flip(0))


def test_numbers_are_inside_the_open_interval():
    numbers = uniform(torch.arange(1000)[:, None], 0, torch.arange(1000))
    assert float(numbers.min()) > 0 and float(numbers.max()) < 1


def test_numbers_are_uniform_along_keys_steps_and_indices(seed=0):
    """Three Kolmogorov-Smirnov tests of 100,000 numbers each: an equally good hash fails with odds below 1e-6."""
    places = torch.arange(100_000)
    first = torch.tensor(seed)
    along_steps = torch.stack([uniform(torch.arange(100), step, first) for step in range(1000)]).flatten()
    for numbers in (uniform(places, seed, first), uniform(first + 1, seed, places), along_steps):
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > FALSE_ALARM / 3


def test_neighbouring_places_are_unrelated(seed=0):
    """Four correlations of 250,000 pairs: standard error 0.002, so 0.011 is 5.5 of them (4e-8 each, two-sided)."""
    keys, places = torch.arange(501)[:, None], torch.arange(501)
    table, next_step = uniform(keys, seed, places), uniform(keys, seed + 1, places)
    for other in (table.roll(1, 0), table.roll(1, 1), table.T, next_step):
        keep = ~torch.eye(501, dtype=torch.bool)
        correlation = torch.corrcoef(torch.stack([table[keep], other[keep]]))[0, 1]
        assert abs(float(correlation)) < 0.011


def test_gumbel_numbers_have_their_law(seed=0):
    numbers = gumbel(torch.tensor(4), seed, torch.arange(100_000))
    assert stats.kstest(numbers.numpy(), "gumbel_r").pvalue > FALSE_ALARM
