"""Test `examples/real_pools.py`: compute its numbers again in NumPy, and make its files again from their source."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.examples import EXAMPLES, example

BETAS = {"HumanEval": [0.05, 0.05], "Game of 24": [0.05, 0.1], "Game of 24, a reward not hacked": [0.005, 0.005]}
SIZES = {"HumanEval": [4, 4], "Game of 24": [8, 8], "Game of 24, a reward not hacked": [100, 100]}


@pytest.fixture(scope="module")
def module():
    return example("real_pools")


@pytest.fixture(scope="module")
def replays(module, tmp_path_factory):
    picture = tmp_path_factory.mktemp("pictures") / "real_pools.png"
    found = module.main(picture, replicates=4)
    assert picture.stat().st_size > 10_000
    return found


@pytest.fixture(scope="module")
def pools(module):
    def read(file, column):
        rows = [json.loads(line) for line in gzip.decompress((module.DATA / file).read_bytes()).splitlines()]
        return np.array([row[column] for row in rows]), np.array([row["gold_rewards"] for row in rows], dtype=float)

    return {name: read(*source) for name, (_, *source) in module.POOLS.items()}


def best_of_n(rewards, gold, size):
    """Return best-of-n's law: the i-th lowest of P wins with choose(i - 1, N - 1) / choose(P, N); ties share."""
    count = len(rewards)
    chances = [math.comb(rank, size - 1) / math.comb(count, size) for rank in range(count)]
    ordered = np.sort(rewards)
    return sum(chances[rank] * gold[rewards == ordered[rank]].mean() for rank in range(count))


def pessimism(rewards, gold, beta):
    """Weigh by max(r - normalizer, 0), with the largest (sum of the k highest - N * beta) / k as normalizer."""
    ordered = np.sort(rewards)[::-1]
    normalizer = ((np.cumsum(ordered) - len(rewards) * beta) / np.arange(1, len(rewards) + 1)).max()
    weights = np.maximum(rewards - normalizer, 0)
    return (weights * gold).sum() / weights.sum()


@pytest.mark.parametrize("name", BETAS)
def test_best_of_n_is_that_of_all_subsets_of_the_pool(replays, pools, module, name):
    rows = list(zip(*pools[name], strict=True))
    for row, size in enumerate(module.SIZES):
        expected = [best_of_n(rewards, gold, size) for rewards, gold in rows]
        assert replays[name].best_of_n[row].tolist() == pytest.approx(expected, abs=1e-9), size


@pytest.mark.parametrize("name", BETAS)
def test_pessimism_at_100_is_the_law_of_the_whole_pool(replays, pools, name):
    for beta, curve in replays[name].fixed.items():
        expected = [pessimism(rewards, gold, beta) for rewards, gold in zip(*pools[name], strict=True)]
        assert curve[-1].tolist() == pytest.approx(expected, abs=1e-9), beta


@pytest.mark.parametrize("name", BETAS)
def test_settings_are_the_best_of_the_other_half(replays, name):
    found = replays[name]
    assert found.betas == BETAS[name] and found.sizes == SIZES[name]
    for half, beta in enumerate(found.betas):
        assert found.pessimism[:, half::2].equal(found.fixed[beta][:, half::2])
        others = {choice: curve[-1, 1 - half :: 2].mean() for choice, curve in found.fixed.items()}
        assert max(others, key=others.get) == beta


def test_figures_of_the_readme(replays):
    def right(chances):
        return round(chances.mean().item(), 3)

    code, game, honest = replays.values()
    assert [right(curve) for curve in (code.best_of_n[0], code.best_of_n[2], code.best_of_n[-1])] == [
        0.223,
        0.304,
        0.212,
    ]
    assert (right(code.pessimism[-1]), right(code.tuned_best_of_n)) == (0.316, 0.304)
    assert (right(game.best_of_n[-1]), right(game.pessimism[-1]), right(game.tuned_best_of_n)) == (0.01, 0.155, 0.101)
    # A reward that is not hacked: best-of-n does not turn over, and pessimism ends where it does.
    assert (honest.best_of_n.mean(dim=-1).diff() > 0).all()
    assert right(honest.best_of_n[-1]) == right(honest.pessimism[-1]) == 0.191


def test_draws_at_smaller_sizes_are_pools_of_their_own(replays, module):
    """
    At the smallest beta pessimism is best-of-n except for near ties, so its draws scatter about the exact curve. A
    mean of 400 independent chances in [0, 1] is off by more than 0.15 with odds below 2 exp(-2 * 400 * 0.15**2), 3e-8,
    at each of 7 sizes.
    """
    found = replays["Game of 24, a reward not hacked"]
    smallest = found.fixed[min(module.BETAS)].mean(dim=-1)
    assert (smallest - found.best_of_n.mean(dim=-1)).abs().max() < 0.15  # odds of a false alarm below 1e-6


def test_same_seed_draws_the_same(replays, module, tmp_path):
    again = module.replay(*module.load(*module.POOLS["HumanEval"][1:]), replicates=4, seed=0)
    assert again.pessimism.equal(replays["HumanEval"].pessimism)


def test_files_hold_numbers_only(module):
    for file in module.DATA.glob("*.gz"):
        for row in map(json.loads, gzip.decompress(file.read_bytes()).splitlines()):
            assert row.pop("id")
            for values in row.values():
                assert len(values) == 100 and all(isinstance(value, (int, float)) for value in values)


def test_files_are_made_from_their_source(module, tmp_path):
    folder = EXAMPLES.parents[1] / "shared" / "data"
    source = type(folder)(os.environ.get("HF_ITP_TEST_DATA", folder))
    if not (source / "codet_humaneval_164x100.jsonl.gz").is_file():
        pytest.skip(f"the files that the pools are made from are not in {source}")
    example("make_real_pools").main(source, tmp_path)
    made = {file.name: gzip.decompress(file.read_bytes()) for file in tmp_path.glob("*.gz")}
    assert made == {file.name: gzip.decompress(file.read_bytes()) for file in module.DATA.glob("*.gz")}


def test_help_says_what_is_drawn():
    command = [sys.executable, EXAMPLES / "real_pools.py", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "best-of-n is fooled" in text and "--replicates" in text and "Reward:" in text
