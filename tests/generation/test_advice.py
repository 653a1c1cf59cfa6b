"""Test when a strategy's advice is given: once per process, over the pools of all calls, from any thread."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hf_itp import ItpWarning, get_strategy
from hf_itp.generation.advice import Adviser
from hf_itp.strategies import Pessimism
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

TINY, FITTING = Pessimism(1e-6), Pessimism(0.3)


def pools(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bounds(advice: str) -> tuple[float, float]:
    lower, upper = re.search(r"between (\S+) and (\S+)\.$", advice).groups()
    return float(lower), float(upper)


def test_prompts_that_come_one_at_a_time_are_judged_together():
    adviser = Adviser()
    told = [adviser.listen(TINY, "reward", pools(1, seed=seed)) for seed in range(20)]
    assert [advice is not None for advice in told] == [False, False, True] + 17 * [False]
    assert "on 3 of 3 pools" in told[2]


def test_range_is_over_all_prompts_seen():
    """The first two pools are ten times as wide as the third, so the middle of the three is one of theirs."""
    adviser = Adviser()
    adviser.listen(TINY, "reward", 10 * pools(2))
    together = bounds(adviser.listen(TINY, "reward", pools(1)))
    alone = bounds(TINY.advice(pools(1)))
    assert all(wide > 2 * narrow for wide, narrow in zip(together, alone, strict=True))


def test_half_of_the_pools_are_needed():
    """Of five pools, those 1000 times as wide are best-of-n under a beta that fits the others."""
    two_wide, three_wide = pools(5), pools(5)
    two_wide[:2] *= 1000
    three_wide[:3] *= 1000
    assert Adviser().listen(FITTING, "reward", two_wide) is None
    assert "on 3 of 5 pools" in Adviser().listen(FITTING, "reward", three_wide)


def test_pools_of_other_settings_rewards_and_sizes_count_apart():
    adviser = Adviser()
    for strategy, reward, size in [(TINY, "a", 8), (Pessimism(2e-6), "a", 8), (TINY, "b", 8), (TINY, "a", 9)]:
        assert adviser.listen(strategy, reward, pools(2, size)) is None
    assert adviser.listen(TINY, "a", pools(1)) is not None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fewer_than_four_candidates_say_too_little(size):
    assert Adviser().listen(TINY, "reward", pools(64, size)) is None


def test_pools_of_equal_rewards_do_not_count():
    adviser = Adviser()
    assert adviser.listen(TINY, "reward", torch.cat([pools(2), torch.full((9, 8), 0.5).double()])) is None
    assert "on 3 of 3 pools" in adviser.listen(TINY, "reward", pools(1))


def test_pools_after_the_first_64_change_nothing():
    adviser = Adviser()
    assert adviser.listen(FITTING, "reward", pools(64)) is None
    assert adviser.listen(FITTING, "reward", 1000 * pools(1000, seed=1)) is None


@pytest.mark.parametrize("strategy", [Pessimism(), Pessimism(pool="fresh"), get_strategy("best_of_n")])
def test_default_and_strategies_without_advice_are_never_told(strategy):
    wide = torch.cat([pools(8), 1e6 * pools(8), 1e-6 * pools(8)])
    assert Adviser().listen(strategy, "reward", wide) is None and strategy.advice(wide) is None


def test_many_threads_hear_one_advice():
    adviser = Adviser()
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda seed: adviser.listen(TINY, "reward", pools(1, seed=seed)), range(400)))
    assert sum(advice is not None for advice in told) == 1


def test_generate_warns_once_over_single_prompts():
    def generate(seed):
        tiny_model("llama").generate(
            **left_padded_batch([7]), strategy="pessimism", beta=1e-6, reward_model=PromptBoundReward(),
            prompts=["a"], num_candidates=4, max_new_tokens=3, seed=seed, tokenizer=tiny_tokenizer(),
        )  # fmt: skip

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(6):
            generate(seed)
    [warning] = [one for one in caught if issubclass(one.category, ItpWarning)]
    assert "is so small for these rewards" in str(warning.message)


def test_a_process_starts_without_advice_given():
    """The tests reset what a process remembers; this one does not."""
    code = """
import warnings, torch
from hf_itp.generation.advice import ADVISER
from hf_itp.strategies import Pessimism
told = [ADVISER.listen(Pessimism(1e-6), "reward", torch.arange(8.0).expand(4, 8)) for _ in range(3)]
print([one is not None for one in told])
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert ended.stdout.strip() == "[True, False, False]", ended.stderr
