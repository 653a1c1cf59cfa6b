"""Test the replay of strategies over pools: against arithmetic on uniform pools and enumeration of subsets."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import pytest
import torch

from hf_itp import get_strategy
from hf_itp.errors import ArgumentError, ItpWarning
from hf_itp.evaluation.sweep import sweep
from hf_itp.evaluation.tables import reward_table
from hf_itp.pools.file import read_rows

POOL = [0.3, 0.9, 0.9, -1.0, 0.5, 0.1]
GOLD = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def table_of(*rows, **names):
    return reward_table(((f"line {number} of here", row) for number, row in enumerate(rows, 1)), **names)


def uniform_pools(prompts, size, seed):
    rewards = torch.rand(prompts, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return table_of(*({"rewards": row} for row in rewards.tolist()))


@pytest.mark.parametrize(
    "strategy",
    [get_strategy("best_of_n"), get_strategy("worst_of_n"), get_strategy("top_quantile", multiplier=2)],
    ids=lambda strategy: strategy.name,
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_closed_laws_are_the_mean_over_all_subsets(strategy, size):
    expected, subsets = torch.zeros(6, dtype=torch.float64), list(itertools.combinations(range(6), size))
    for subset in subsets:
        expected[list(subset)] += strategy.probabilities(torch.tensor([POOL[place] for place in subset])) / len(
            subsets
        )
    law = strategy.subsample_probabilities(torch.tensor(POOL), size)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)


def test_replay_is_the_mean_over_all_subsets():
    """Gives a false alarm with odds below 1e-6: the bound is five standard errors of 3,000 subsets."""
    strategy, size = get_strategy("pessimism", beta=0.2), 3
    values = []
    for subset in map(list, itertools.combinations(range(6), size)):
        law = strategy.probabilities(torch.tensor([POOL[place] for place in subset], dtype=torch.float64))
        values.append(float((law * torch.tensor([GOLD[place] for place in subset], dtype=torch.float64)).sum()))
    [replay, _] = sweep(table_of({"rewards": POOL, "gold_rewards": GOLD}), [strategy], [size], replicates=3000)
    spread = torch.tensor(values, dtype=torch.float64).std() / math.sqrt(3000)
    assert abs(float(replay.gold) - sum(values) / len(values)) < 5 * float(spread)


@pytest.mark.parametrize("size", [1, 2, 8, 50])
def test_win_rate_of_best_of_n_is_unbiased(size):
    [replay] = sweep(uniform_pools(400, 50, seed=0), [get_strategy("best_of_n")], [size])
    torch.testing.assert_close(replay.win_rate, torch.full((400,), size / (size + 1), dtype=torch.float64))


def test_uniform_pools_give_the_closed_forms():
    """Gives a false alarm with odds below 1e-6: the bounds are five standard errors and O(1/M)."""
    table, beta, multiplier = uniform_pools(300, 1000, seed=1), 0.1, 8
    strategies = [get_strategy("pessimism", beta=beta), get_strategy("top_quantile", multiplier=multiplier)]
    pessimism, top = sweep(table, strategies, [1000], replicates=1)
    assert abs(float(pessimism.proxy.mean()) - (1 - math.sqrt(2 * beta) / 3)) < 0.003
    assert abs(float(pessimism.kl.mean()) - (math.log(2 / beta) / 2 - 0.5)) < 0.01
    assert abs(float(top.win_rate.mean()) - (1 - 1 / (2 * multiplier))) < 0.001
    assert abs(float(top.kl.mean()) - math.log(multiplier)) < 1e-9


@pytest.mark.parametrize("size", [2, 16])
def test_bound_of_the_divergence_of_best_of_n_is_its_own(size):
    [replay] = sweep(uniform_pools(4, 4000, seed=2), [get_strategy("best_of_n")], [size])
    exact = math.log(size) - (size - 1) / size
    assert exact - 1e-4 < float(replay.kl.mean()) < exact + 0.01


def test_oracle_is_pass_at_n():
    gold = [1.0] * 2 + [0.0] * 6
    [best, oracle] = sweep(
        table_of({"rewards": list(range(8)), "gold_rewards": gold}), [get_strategy("best_of_n")], [3]
    )
    assert oracle.label == "oracle" and best.label == "best_of_n"
    assert float(oracle.gold) == pytest.approx(1 - math.comb(6, 3) / math.comb(8, 3))


def test_ragged_pool_with_nulls_is_read_row_by_row(tmp_path):
    rows = [
        {"rewards.a": [0.1, None, 0.3], "gold_rewards": [1, None, 0], "num_tokens": [5, 6, 7]},
        {"rewards.a": [0.5], "gold_rewards": [1], "num_tokens": [4]},
        {"rewards.a": [None], "gold_rewards": [None], "num_tokens": [4]},
        {"rewards.a": [1, 2], "gold_rewards": [0, 0], "num_tokens": [1, 3]},
    ]
    path = tmp_path / "pool.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    table = reward_table(read_rows(path))
    assert (table.num_prompts, table.no_reward, table.smallest, table.largest) == (4, 2, 1, 2)
    with pytest.warns(ItpWarning, match="Some prompts have only 1 rewards"):
        one, two, *_ = sweep(table, [get_strategy("best_of_n")], [1, 2])
    assert one.prompts.tolist() == [1, 0, 3] and two.prompts.tolist() == [0, 3]
    assert two.proxy.tolist() == [0.3, 2.0] and two.tokens.tolist() == [12.0, 4.0]
    row = two.row()
    assert row["num_prompts"] == 2 and row["gold_mean"] == 0 and row["settings"] == "{}" and row["replicates"] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rewards": [1.0, "2"]}, r"`rewards` must hold finite numbers, .* got '2' in line 2 of here"),
        ({"rewards": [1.0, float("nan")]}, "got nan in line 2 of here"),
        ({"rewards": []}, r"got \[\] in line 2 of here"),
        ({"prompt": "a"}, "got None in line 2 of here"),
        ({"rewards": [1.0], "responses": ["a", "b"]}, "got 1 for 2 in line 2 of here"),
        ({"rewards": [1.0, True]}, "got True in line 2"),
    ],
)
def test_broken_row_is_named(row, message):
    with pytest.raises(ArgumentError, match=message):
        table_of({"rewards": [1.0]}, row)


@pytest.mark.parametrize("late", ["gold_rewards", "num_tokens"])
def test_column_that_comes_late_is_not_left_out_silently(late):
    with pytest.raises(ArgumentError, match=f"`{late}` must be in every row .* got it in line 2 of here"):
        table_of({"rewards": [1.0]}, {"rewards": [1.0], late: [2.0]})


def test_rewards_are_chosen_by_name():
    row = {"rewards.a": [1.0], "rewards.b": [2.0]}
    assert table_of(row, rewards="b").blocks[0].rewards.item() == 2
    with pytest.raises(ArgumentError, match=r"one of the pool's columns .* got None. It has `rewards.a`, `rewards.b`"):
        table_of(row)
    with pytest.raises(ArgumentError, match=r"got 'c'. It has `rewards.a`"):
        table_of(row, rewards="c")


def test_size_beyond_every_pool_is_refused_and_fresh_pools_that_may_not_fit_are_named():
    table = table_of({"rewards": POOL})
    with pytest.raises(ArgumentError, match=r"`n` must be .* got 7"):
        list(sweep(table, [get_strategy("best_of_n")], [7]))
    with pytest.warns(ItpWarning, match="with 4 candidates may draw 9, and the largest pool has 6"):
        assert list(sweep(table, [get_strategy("pessimism", beta=1, pool="fresh")], [4])) == []


def test_a_replay_does_not_depend_on_what_else_is_replayed():
    table = uniform_pools(5, 20, seed=3)
    pessimism, soft = get_strategy("pessimism", beta=0.1), get_strategy("pessimism", beta=0.5)
    alone = list(sweep(table, [pessimism], [4], seed=7))[-1]
    together = list(sweep(table, [soft, pessimism], [2, 4], seed=7))[-1]
    assert alone.proxy.equal(together.proxy) and not alone.proxy.equal(next(sweep(table, [soft], [4])).proxy)
