"""Test candidates without a reward: never selected, whatever draws and selects, and counted."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from hf_itp import EarlyRejection, ScoringError, get_strategy
from hf_itp.strategies.rewarded import OnRewarded
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

PROMPTS = ["first", "second", "third"]
STRATEGIES = {
    "best_of_n": {},
    "worst_of_n": {},
    "top_quantile": {"multiplier": 2.0},
    "best_of_poisson": {"rate": 2.0},
    "pessimism": {"beta": 0.2},
}


def abstaining(share, kind=PromptBoundReward):
    """Return a reward that has none for about a share of the responses, by what they say."""

    class Abstaining(kind):
        def __call__(self, prompts, completions, **kwargs):
            return [
                None if (reward * 997) % 1 < share else reward for reward in super().__call__(prompts, completions)
            ]

    return Abstaining()


def generated(strategy="best_of_n", reward=None, **overrides):
    arguments = {
        **left_padded_batch([7, 5, 9]), "strategy": strategy, "prompts": PROMPTS, "num_candidates": 8, "seed": 0,
        "max_new_tokens": 4, "tokenizer": tiny_tokenizer(), "reward_model": reward or abstaining(0.4),
        "return_dict_in_generate": True, **STRATEGIES.get(strategy, {}), **overrides,
    }  # fmt: skip
    return tiny_model("llama").generate(**arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_law_is_that_of_the_pool_of_those_with_a_reward(strategy):
    output = generated(strategy, num_return_sequences=2)
    full = generated(strategy, PromptBoundReward(), num_return_sequences=2)
    there = ~output.candidate_rewards.isnan()
    assert output.candidate_rewards[there].equal(full.candidate_rewards[there]), "the same draws"
    assert 0 < int((~there).sum()) < there.numel()
    assert output.diagnostics["no_reward"].equal((~there).sum(dim=-1))
    assert full.diagnostics["no_reward"].tolist() == [0, 0, 0]
    rule = get_strategy(strategy, **STRATEGIES[strategy])
    for row in range(3):
        pool = output.candidate_rewards[row, there[row]]
        expected = torch.zeros(8, dtype=torch.float64)
        expected[there[row]] = rule.probabilities(pool)
        torch.testing.assert_close(output.probabilities[row], expected, rtol=0, atol=0)
        size = 1 / expected.square().sum()
        torch.testing.assert_close(output.diagnostics["effective_sample_size"][row], size)
        for name, value in rule.diagnostics(pool).items():
            torch.testing.assert_close(output.diagnostics[name][row], value)
    assert there.gather(1, output.selected).all() and output.rewards.isfinite().all()


def test_order_of_best_of_n_skips_those_without():
    output = generated(num_return_sequences=3)
    expected = output.candidate_rewards.nan_to_num(nan=-math.inf).topk(3).values
    assert output.rewards.equal(expected)


@pytest.mark.filterwarnings("ignore:`beta`")
@pytest.mark.parametrize("seed", range(4))
def test_fresh_pool_selects_and_counts_only_those_with_a_reward(seed):
    output = generated("pessimism", pool="fresh", beta=0.02, num_return_sequences=2, seed=seed, num_candidates=6)
    drawn = torch.tensor([len(pool) for pool in output.candidates])
    unscored = output.candidate_rewards.isnan().sum(dim=-1) - (output.candidate_rewards.shape[1] - drawn)
    assert output.diagnostics["no_reward"].equal(unscored) and int(unscored.sum()) > 0
    assert output.rewards.isfinite().all()
    # By hand: Algorithm 1 on the stream of candidates with a reward.
    rule = get_strategy("pessimism", pool="fresh", beta=0.02)
    for row in range(3):
        rewards = output.candidate_rewards[row]
        places = (~rewards.isnan()).nonzero().squeeze(-1)
        first = int((places < 6).sum())
        found = rule.diagnostics(rewards[places[:first]])
        torch.testing.assert_close(output.diagnostics["normalizer"][row], found["normalizer"])
        within = [places.tolist().index(index) for index in output.selected[row].tolist()]
        assert min(within) >= first, "proposals and fallbacks only"
        assert output.diagnostics["fallbacks"][row] == sum(index >= 2 * first for index in within)


def test_fresh_pool_that_runs_dry_selects_among_what_is_there():
    """The judge falls silent after the first pools, so no proposal has a reward."""

    class Silent(PromptBoundReward):
        def __call__(self, prompts, completions, **kwargs):
            rewards = super().__call__(prompts, completions)
            return rewards if len(self.calls) == 1 else [None] * len(rewards)

    output = generated("pessimism", Silent(), pool="fresh", beta=0.1, num_candidates=5)
    assert (output.selected < 5).all() and output.rewards.isfinite().all()
    # Four times the 5 + 1 that it may ask for, and no more.
    assert [len(pool) for pool in output.candidates] == [5 + 24] * 3
    assert output.diagnostics["no_reward"].tolist() == [24] * 3


def test_finished_run_is_read_as_the_strategy_reads_one():
    """Chance of each index over many seeds against `probabilities` of the finished run; false alarm below 1e-6."""
    rule = get_strategy("pessimism", pool="fresh", beta=0.5)
    rewards = torch.tensor([0.3, math.nan, 0.9, 0.5, math.nan, 0.7, 0.2])
    places = [0, 2, 3, 5, 6]
    law = torch.zeros(7, dtype=torch.float64)
    law[places] = rule.probabilities(rewards[places])
    draws = 4000
    counts = Counter(
        int(OnRewarded(rule).select_from_run(rewards, 1, torch.Generator().manual_seed(seed), 0).indices)
        for seed in range(draws)
    )
    for index in range(7):
        # Hoeffding: 2 exp(-2 n e^2) < 1.2e-7 for each of 7.
        assert abs(counts[index] / draws - float(law[index])) < math.sqrt(math.log(2 / 1.2e-7) / (2 * draws))


@pytest.mark.parametrize(
    "settings", [0.5, EarlyRejection(0.5, interval=4), EarlyRejection(0.3, interval=4, audit=1.0)]
)
def test_early_rejection_returns_complete_responses_with_a_reward(settings):
    output = generated(early_rejection=settings, max_new_tokens=24, min_new_tokens=20)
    found = output.diagnostics["early_rejection"]
    assert int(output.diagnostics["no_reward"].sum()) > 0
    usable = ~output.candidate_rewards.isnan() & ~found["rejected"]
    assert usable.gather(1, output.selected).all()
    best = output.candidate_rewards.where(usable, -math.inf).amax(dim=-1)
    assert output.rewards[:, 0].equal(best)
    if "reward_lost" in found:
        assert (found["reward_lost"] >= 0).all()


def test_without_a_reward_leaves_the_race_first():
    """Of four candidates two have none as long as they are short; both are cut at the first review."""

    class Late(PromptBoundReward):
        def __call__(self, prompts, completions, **kwargs):
            rewards = super().__call__(prompts, completions)
            if len(self.calls) > 1:
                return rewards
            order = sorted(range(len(rewards)), key=rewards.__getitem__)
            best = set(order[len(rewards) // 2 :])
            return [None if place in best else reward for place, reward in enumerate(rewards)]

    output = generated(
        reward=Late(), early_rejection=EarlyRejection(0.5, interval=4), max_new_tokens=12, min_new_tokens=12,
        num_candidates=4, **{key: value[:1] for key, value in left_padded_batch([7]).items()}, prompts=PROMPTS[:1],
    )  # fmt: skip
    rejected = output.diagnostics["early_rejection"]["rejected"][0]
    assert output.candidate_rewards[0].isnan()[rejected].sum() == 2


@pytest.mark.parametrize("batch_size", [None, 3])
def test_prompt_with_too_few_is_named_and_nothing_drawn_is_lost(batch_size):
    class OnlyOne(PromptBoundReward):
        def __call__(self, prompts, completions, **kwargs):
            rewards = super().__call__(prompts, completions)
            seen = Counter()
            return [
                None if prompt == "second" and (seen.update([prompt]) or seen[prompt] > 1) else reward
                for prompt, reward in zip(prompts, rewards, strict=True)
            ]

    full = generated(reward=PromptBoundReward(), batch_size=batch_size)
    assert generated(reward=OnlyOne()).diagnostics["no_reward"].tolist() == [0, 7, 0]
    with pytest.raises(ScoringError, match=r"Prompt 1 must have at least 2 candidates with a reward.*got 1 of 8") as e:
        generated(reward=OnlyOne(), num_return_sequences=2, batch_size=batch_size)
    assert [[ids.tolist() for ids in pool] for pool in e.value.candidates] == [
        [ids.tolist() for ids in pool] for pool in full.candidates
    ]
