"""
Test in a countable world that candidates follow the policy's law and winners each strategy's.

A correct program fails each of these tests with odds below 1e-6, stated in `tests.worlds.odds`.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import hf_itp
from hf_itp.functional import pessimism
from tests.sampling.drawing import draw
from tests.worlds.laws import finite_world, push_forward
from tests.worlds.odds import assert_follows
from tests.worlds.warpers import warper

NUM_DRAWS = 20_000
SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 2},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.4, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_candidates_follow_the_law_of_the_policy(architecture, settings, seed=0):
    world = finite_world(architecture=architecture)
    arguments = {"max_new_tokens": world.max_new_tokens, "top_k": 0, **settings}
    [pool], _ = draw(world.model, {"input_ids": world.input_ids}, NUM_DRAWS, seed=seed, **arguments)
    assert_follows(map(tuple, pool), world.law(warper(**settings)))


def test_law_of_the_wrong_temperature_is_told_apart(seed=0):
    """The tests above rely on this: so many draws miss a slightly wrong law only with odds of 2e-13."""
    world = finite_world()
    arguments = {"seed": seed, "max_new_tokens": world.max_new_tokens}
    [pool], _ = draw(world.model, {"input_ids": world.input_ids}, NUM_DRAWS, **arguments)
    with pytest.raises(AssertionError):
        assert_follows(map(tuple, pool), world.law(warper(temperature=1.1)))


def rewards_for(law):
    """Return rewards in [0, 1] with ties, so that the tests cover them."""
    return {response: (7 * position % 5) / 4 for position, response in enumerate(sorted(law))}


def winners(world, strategy, num_candidates, tokenizer, seed, **fields):
    rewards = rewards_for(world.law())

    def reward_model(prompts, completions, completion_ids, **kwargs):
        return [rewards[tuple(ids)] for ids in completion_ids]

    rows = 6_000
    sequences = world.model.generate(
        input_ids=world.input_ids.expand(rows, -1),
        strategy=strategy,
        reward_model=reward_model,
        prompts=["the prompt"] * rows,
        num_candidates=num_candidates,
        seed=seed,
        tokenizer=tokenizer,
        max_new_tokens=world.max_new_tokens,
        return_dict_in_generate=True,
        **fields,
    )
    return [
        tuple(pool[index].tolist()) for pool, [index] in zip(sequences.candidates, sequences.selected, strict=True)
    ]


STRATEGIES = [
    ("best_of_n", {}),
    ("worst_of_n", {}),
    ("pessimism", {"beta": 0.3}),
    ("pessimism", {"beta": 0.3, "normalize": "quantile"}),
    ("pessimism", {"beta": 0.5, "normalize": "zscore"}),
    ("pessimism", {"beta": 0.3, "reward_bound": 0.8}),
    ("top_quantile", {"multiplier": 2.0}),
]


@pytest.mark.parametrize(("strategy", "fields"), STRATEGIES, ids=str)
def test_winners_follow_the_law_of_the_strategy(strategy, fields, small_world, tokenizer, seed=0):
    law, rewards = small_world.law(), rewards_for(small_world.law())
    rule = hf_itp.get_strategy(strategy, **fields)
    expected = push_forward(law, rule.probabilities, rewards, num_candidates=3)
    returned = winners(small_world, strategy, 3, tokenizer, seed, **fields)
    assert_follows(returned, expected)
    with pytest.raises(AssertionError):
        assert_follows(returned, law)


def law_of_algorithm_1(law, rewards, num_candidates, beta, reward_bound):
    """Write out steps 1 to 5 of the paper's two-pool algorithm, with all first pools enumerated."""
    returned = dict.fromkeys(law, 0.0)
    for pool in itertools.product(law, repeat=num_candidates):
        probability = math.prod(law[response] for response in pool)
        _, normalizer = pessimism(torch.tensor([rewards[response] for response in pool]), beta)
        bound = (reward_bound - float(normalizer)) / beta
        accept = {response: min(max(rewards[response] - float(normalizer), 0) / beta / bound, 1) for response in law}
        rate = sum(law[response] * accept[response] for response in law)
        none = (1 - rate) ** num_candidates
        for response in law:
            accepted = law[response] * accept[response] * (1 - none) / rate if rate > 0 else 0.0
            returned[response] += probability * (accepted + none * law[response])
    return returned


def test_winners_of_the_fresh_pool_follow_algorithm_1(small_world, tokenizer, seed=0):
    law, rewards = small_world.law(), rewards_for(small_world.law())
    fields = {"beta": 0.2, "reward_bound": 1.0}
    expected = law_of_algorithm_1(law, rewards, 2, **fields)
    assert math.isclose(sum(expected.values()), 1.0, rel_tol=1e-6)
    assert_follows(winners(small_world, "pessimism", 2, tokenizer, seed, pool="fresh", **fields), expected)
