"""Test that laws of finite worlds sum to one and transformers samples from them, and our warpers against its own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.tiny import EOS
from tests.worlds.laws import FiniteWorld, finite_world, push_forward, response_law
from tests.worlds.odds import FALSE_ALARM, assert_follows, chi_square_p_value
from tests.worlds.warpers import warper

NUM_SAMPLES = 6000
WARPS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.15},
    "all": {"temperature": 1.4, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
}


def random_logits(ties: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=generator, dtype=torch.float64) * 2
    return list(rows.round() if ties else rows)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("setting", "processor"),
    [
        *(({"temperature": value}, TemperatureLogitsWarper(value)) for value in (0.3, 2.5)),
        *(({"top_k": value}, TopKLogitsWarper(value)) for value in (1, 3, 12, 50)),
        *(({"top_p": value}, TopPLogitsWarper(value)) for value in (0.0, 0.1, 0.5, 0.9, 0.999)),
        *(({"min_p": value}, MinPLogitsWarper(value)) for value in (0.0, 0.05, 0.5, 1.0)),
    ],
)
def test_reference_warper_agrees_with_transformers(setting, processor, ties: bool) -> None:
    for logits in random_logits(ties):
        torch.testing.assert_close(warper(**setting)(logits), processor(None, logits[None])[0], atol=0, rtol=0)


@pytest.mark.parametrize("ties", [False, True])
def test_reference_warpers_compose_in_the_order_of_generate(ties: bool) -> None:
    setting = {"temperature": 1.7, "top_k": 6, "top_p": 0.8, "min_p": 0.15}
    processors = LogitsProcessorList(
        [TemperatureLogitsWarper(1.7), TopKLogitsWarper(6), TopPLogitsWarper(0.8), MinPLogitsWarper(0.15)]
    )
    for logits in random_logits(ties):
        torch.testing.assert_close(warper(**setting)(logits), processors(None, logits[None])[0], atol=0, rtol=0)


@pytest.mark.parametrize(("vocabulary", "max_new_tokens", "size"), [(5, 3, 85), (5, 2, 21), (4, 2, 13)])
def test_law_sums_to_one_over_all_responses(vocabulary: int, max_new_tokens: int, size: int) -> None:
    law = finite_world(vocabulary, max_new_tokens).law()
    assert len(law) == size
    assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
    for response in law:
        assert EOS not in response[:-1]
        assert response[-1] == EOS or len(response) == max_new_tokens


def test_law_without_an_end_token_has_full_length_responses_only() -> None:
    world = finite_world(max_new_tokens=2)
    law = response_law(world.model, world.input_ids, 2, None)
    assert set(law) == set(itertools.product(range(5), repeat=2))
    assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)


def test_no_response_of_a_world_dominates() -> None:
    for seed, architecture in itertools.product(range(4), ("llama", "gpt2")):
        law = finite_world(seed=seed, architecture=architecture).law()
        assert max(law.values()) < 0.7
        assert sum(probability > 0.01 for probability in law.values()) >= 8
        assert 0.1 < sum(probability for response, probability in law.items() if response[-1] == EOS) < 0.9


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("warp", WARPS.values(), ids=WARPS.keys())
def test_generate_samples_follow_the_law(architecture: str, warp: dict, seed: int = 0) -> None:
    """False alarm at most 1e-6."""
    world = finite_world(architecture=architecture)
    torch.manual_seed(seed)
    sequences = world.model.generate(
        input_ids=world.input_ids.repeat(NUM_SAMPLES, 1),
        attention_mask=torch.ones(NUM_SAMPLES, world.input_ids.shape[1], dtype=torch.long),
        max_new_tokens=world.max_new_tokens,
        do_sample=True,
        **({"top_k": 0} | warp),
    )
    responses = [tuple(row) for row in sequences[:, world.input_ids.shape[1] :].tolist()]
    ended = [row[: row.index(EOS) + 1] if EOS in row else row for row in responses]
    law = world.law(warper(**warp))
    assert_follows(ended, law)
    if warp:
        assert chi_square_p_value({row: ended.count(row) for row in set(ended)}, world.law()) < FALSE_ALARM


def test_push_forward_of_uniform_choice_is_the_law_itself(small_world: FiniteWorld) -> None:
    law = small_world.law()
    returned = push_forward(law, lambda rewards: torch.full_like(rewards, 1 / 3), dict.fromkeys(law, 0.0), 3)
    assert returned == pytest.approx(law, abs=1e-12)


def best_of_n(pool: torch.Tensor) -> torch.Tensor:
    best = (pool == pool.max()).double()
    return best / best.sum()


def test_push_forward_of_the_maximum_is_a_difference_of_powers() -> None:
    """P(best of N is y) = F(y)^N - F(y-)^N where F is the law's distribution function in order of reward."""
    law = {(token,): probability for token, probability in enumerate([0.1, 0.2, 0.3, 0.4])}
    rewards = {(token,): float(token) for token in range(4)}
    returned = push_forward(law, best_of_n, rewards, 4)
    below = 0.0
    for response, probability in law.items():
        assert returned[response] == pytest.approx((below + probability) ** 4 - below**4, abs=1e-12)
        below += probability


def test_push_forward_agrees_with_all_ordered_pools_under_ties() -> None:
    law = {(0,): 0.5, (1,): 0.3, (2,): 0.2}
    rewards = {(0,): 1.0, (1,): 1.0, (2,): 0.5}
    expected = dict.fromkeys(law, 0.0)
    for pool in itertools.product(law, repeat=3):
        selection = torch.tensor([rewards[response] for response in pool], dtype=torch.float64).softmax(-1).tolist()
        for response, probability in zip(pool, selection, strict=True):
            expected[response] += probability * math.prod(law[each] for each in pool)
    assert push_forward(law, lambda pool: pool.softmax(-1), rewards, 3) == pytest.approx(expected, abs=1e-12)


def test_chi_square_by_hand_and_with_pooling() -> None:
    # One degree of freedom: (60 - 50)^2 / 50 twice is 4, whose upper tail is erfc(sqrt(2)).
    assert chi_square_p_value({"a": 60, "b": 40}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.045500263896)
    # "c" and "d" expect 25 each and become one cell that expects 50.
    pooled = chi_square_p_value({"a": 60, "c": 40}, {"a": 0.5, "c": 0.25, "d": 0.25})
    assert pooled == pytest.approx(0.045500263896)


def test_outcome_the_law_rules_out_is_no_coincidence() -> None:
    assert chi_square_p_value({"a": 1000, "b": 999, "c": 1}, {"a": 0.5, "b": 0.5}) == 0.0
    assert chi_square_p_value({"a": 1000, "b": 999, "c": 1}, {"a": 0.5, "b": 0.5, "c": 0.0}) == 0.0


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="Draw more"):
        chi_square_p_value({"a": 30, "b": 30}, {"a": 0.5, "b": 0.5})


def test_wrong_law_is_told_apart() -> None:
    with pytest.raises(AssertionError, match="draws do not follow the law"):
        assert_follows(["a"] * 600 + ["b"] * 400, {"a": 0.5, "b": 0.5})
