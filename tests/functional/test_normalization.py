from __future__ import annotations

import pytest
import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional import calibrate_rewards, in_reward_units, normalize_rewards
from tests.functional.references import doubles, random_pools


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_none_keeps_the_rewards():
    assert normalize_rewards(torch.tensor([3, 1])).tolist() == [3.0, 1.0]


def test_zscore_has_mean_zero_and_population_deviation_one():
    scores = normalize_rewards(randn(20, 9) * 5 + 3, "zscore")
    torch.testing.assert_close(scores.mean(dim=-1), torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(scores.square().mean(dim=-1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize(("scale", "offset"), [(1e-250, 0.0), (1e250, 0.0), (1.0, 1e9), (1e-3, -1e6)])
def test_zscore_survives_extreme_scales_and_offsets(scale, offset):
    rewards = doubles([0.0, 1.0, 2.0, 5.0])
    expected = normalize_rewards(rewards, "zscore")
    torch.testing.assert_close(normalize_rewards(rewards * scale + offset, "zscore"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.0, -7e30])
def test_equal_rewards_have_zscore_zero(value):
    assert normalize_rewards(torch.full((2, 7), value), "zscore").tolist() == [[0.0] * 7] * 2
    assert normalize_rewards(torch.tensor([1.0, 2.0]), "zscore", reference=torch.tensor([value] * 3)).tolist() == [
        0,
        0,
    ]


def test_quantile_is_the_mid_rank():
    assert normalize_rewards(torch.tensor([10.0, -3.0, 5.0, 7.0]), "quantile").tolist() == [0.875, 0.125, 0.375, 0.625]
    assert normalize_rewards(torch.tensor([1.0, 1.0, 0.0]), "quantile").tolist() == pytest.approx(
        [2 / 3, 2 / 3, 1 / 6]
    )


def test_quantile_is_the_calibrated_reward_in_the_pool_itself():
    for pool in random_pools(300, seed=1):
        rewards = doubles(pool)
        torch.testing.assert_close(normalize_rewards(rewards, "quantile"), calibrate_rewards(rewards, rewards))


def test_reference_gives_the_scale():
    fresh, pool = randn(3, 2), randn(3, 8).exp()
    mean, deviation = pool.mean(dim=-1, keepdim=True), pool.std(dim=-1, correction=0, keepdim=True)
    torch.testing.assert_close(normalize_rewards(fresh, "zscore", reference=pool), (fresh - mean) / deviation)
    assert torch.equal(normalize_rewards(fresh, "quantile", reference=pool), calibrate_rewards(fresh, pool))
    assert torch.equal(normalize_rewards(fresh, "none", reference=pool), fresh)


def test_unknown_scale_is_refused():
    with pytest.raises(ArgumentError, match=r"'none', 'zscore', 'quantile', got 'rank'\. Choose one of them"):
        normalize_rewards(torch.tensor([1.0]), "rank")


def test_reference_of_other_prompts_is_refused():
    with pytest.raises(ArgumentError, match="Give each prompt its row"):
        normalize_rewards(torch.zeros(2, 3), "zscore", reference=torch.zeros(3, 3))


@pytest.mark.parametrize("normalize", ["none", "zscore"])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 3.0), (50.0, -700.0)])
def test_units_of_the_reward_are_the_inverse_of_normalizing(normalize, scale, offset):
    rewards = randn(5, 9) * scale + offset
    for candidate in range(9):
        values = normalize_rewards(rewards, normalize)[:, candidate]
        torch.testing.assert_close(in_reward_units(values, rewards, normalize), rewards[:, candidate])


def test_ranks_have_no_units_of_the_reward_and_equal_rewards_one_value():
    with pytest.raises(ArgumentError, match="Ranks have no inverse"):
        in_reward_units(torch.tensor(0.5), torch.tensor([1.0, 2.0]), "quantile")
    assert in_reward_units(torch.tensor(-0.2), torch.full((4,), 3.0), "zscore").item() == 3.0
