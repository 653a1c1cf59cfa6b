"""Test what every registered strategy promises, as a table: strategies times promises."""

from __future__ import annotations

import json

import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError
from hf_itp.strategies import Strategy, get_strategy, list_strategies
from tests.global_rng import global_rng_watched
from tests.strategies.instances import IN_ORDER, STRATEGIES
from tests.worlds.odds import assert_follows

POOL = [0.9, 0.1, 0.9, -0.4, 0.5, 1.2, 0.5]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=list(STRATEGIES))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_registered_strategy_is_in_the_table():
    assert {strategy.name for strategy in STRATEGIES.values()} == set(list_strategies())


@every_strategy
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (7,), (4, 5), (2, 3, 6), (2, 1, 100), (0, 5)])
@pytest.mark.parametrize("tied", [False, True])
def test_law_is_a_law_of_the_pools_shape(strategy: Strategy, shape, tied):
    # Within the reward bound of the table: no draw may make it break its own rule.
    rewards = torch.rand(shape, generator=seeded()).mul(0.8)
    law = strategy.probabilities((rewards * 4).round() / 4 if tied else rewards)
    assert law.shape == shape and law.dtype == torch.float64
    assert (law >= 0).all()
    torch.testing.assert_close(law.sum(dim=-1), torch.ones(shape[:-1], dtype=torch.float64), rtol=0, atol=1e-12)


@every_strategy
def test_single_candidate_is_returned_for_certain(strategy: Strategy):
    assert strategy.probabilities(torch.tensor([[0.3], [-5.0]])).tolist() == [[1.0], [1.0]]
    assert strategy.select(torch.tensor([[0.3], [-5.0]]), 1, seeded()).tolist() == [[0], [0]]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in IN_ORDER])
def test_permuting_candidates_permutes_the_law(name):
    rewards = torch.tensor(POOL, dtype=torch.float64)
    order = torch.randperm(len(POOL), generator=seeded())
    law = STRATEGIES[name].probabilities(rewards)
    torch.testing.assert_close(STRATEGIES[name].probabilities(rewards[order]), law[order])


@every_strategy
def test_law_of_a_batch_is_that_of_its_rows(strategy: Strategy):
    rewards = torch.rand(3, 2, 9, generator=seeded())
    law = strategy.probabilities(rewards)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(law[i, j], strategy.probabilities(rewards[i, j]))


@every_strategy
def test_first_index_follows_the_law(strategy: Strategy, seed: int = 0):
    """Gives a false alarm with odds below 1e-6 per strategy."""
    rewards = torch.tensor(POOL, dtype=torch.float64)
    law = strategy.probabilities(rewards)
    first = strategy.select(rewards.expand(40_000, -1), 1, seeded(seed))[:, 0].tolist()
    if (law > 0).sum() == 1:
        assert set(first) == {int(law.argmax())}
    else:
        assert_follows(first, dict(enumerate(law.tolist())))


@every_strategy
@pytest.mark.parametrize("k", [1, 3, 7])
def test_returned_indices_are_all_different(strategy: Strategy, k):
    indices = strategy.select(torch.tensor(POOL).expand(5, 40, -1), k, seeded())
    assert indices.shape == (5, 40, k) and indices.dtype == torch.int64
    assert all(len(set(row)) == k and set(row) <= set(range(7)) for row in indices.reshape(-1, k).tolist())


@every_strategy
def test_same_seed_selects_the_same_and_leaves_the_global_numbers_alone(strategy: Strategy):
    rewards = torch.rand(200, 9, generator=seeded())
    with global_rng_watched():
        first, second = (strategy.select(rewards, 2, seeded(5)) for _ in range(2))
        strategy.probabilities(rewards), strategy.diagnostics(rewards), strategy.advice(rewards)
    assert torch.equal(first, second)


@every_strategy
def test_decide_returns_what_was_asked_for_after_at_most_the_announced_draws(strategy: Strategy):
    for seed in range(30):
        rewards = torch.rand(40, generator=seeded(seed), dtype=torch.float64)
        num_candidates, k = 8, 3
        extra = strategy.num_extra_candidates(num_candidates, k)
        decisions = [
            strategy.decide(rewards[: num_candidates + drawn], num_candidates, k, seeded(seed))
            for drawn in range(extra + 1)
        ]
        made = [decision for decision in decisions if decision is not None]
        assert made and len(set(made[0].tolist())) == k
        first = len(decisions) - len(made)
        assert made[0].max() < num_candidates + first
        # Further draws do not change a decision.
        assert decisions[:first] == [None] * first and all(torch.equal(made[0], later) for later in made)


@every_strategy
def test_diagnostics_are_one_number_per_pool(strategy: Strategy):
    rewards = torch.rand(2, 3, 9, generator=seeded())
    found = strategy.diagnostics(rewards)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(found, torch.Size([2, 3]))
    assert (found["effective_sample_size"] >= 1 - 1e-12).all() and (found["effective_sample_size"] <= 9 + 1e-9).all()


@every_strategy
def test_settings_survive_json_and_bring_the_strategy_back(strategy: Strategy):
    settings = json.loads(json.dumps(strategy.settings()))
    assert get_strategy(strategy.name, **settings) == strategy
    assert tuple(settings) == strategy.field_names()


@pytest.mark.slow
@every_strategy
def test_large_pools_are_served_in_one_batch(strategy: Strategy):
    """A Python loop over 10,000 prompts of 1,000 candidates would take too long for a test."""
    rewards = torch.rand(10_000, 1_000, generator=seeded())
    indices = strategy.select(rewards, 2, seeded())
    assert indices.shape == (10_000, 2) and (indices[:, 0] != indices[:, 1]).all()


@every_strategy
def test_pools_may_be_selected_from_in_any_portions(strategy: Strategy):
    """There are more pools than are worked on at once, and a CPU generator gives its uniform numbers in sequence."""
    rewards, generator = torch.rand(3, 100, 1_000, generator=seeded()), seeded(1)
    portions = [strategy.select(portion, 2, generator) for portion in rewards.view(300, 1_000).split(7)]
    assert strategy.select(rewards, 2, seeded(1)).equal(torch.cat(portions).view(3, 100, 2))


@every_strategy
@pytest.mark.parametrize(
    ("rewards", "k", "error", "remedy"),
    [
        (POOL, 1, ArgumentTypeError, "Wrap it in torch.tensor"),
        (torch.tensor(0.5), 1, ArgumentError, "Score at least one candidate"),
        (torch.tensor([0.5, float("nan")]), 1, RewardError, "Return a finite float"),
        (torch.tensor([0.5, 0.6]), 0, ArgumentError, "Draw more candidates or return fewer sequences"),
        (torch.tensor([0.5, 0.6]), 3, ArgumentError, "Draw more candidates or return fewer sequences"),
        (torch.tensor([0.5, 0.6]), 1.0, ArgumentTypeError, "Give a whole number"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(strategy: Strategy, rewards, k, error, remedy):
    with pytest.raises(error, match=remedy):
        strategy.select(rewards, k, seeded())
