"""Test `hf-itp demo`: its output on tiny models, and once on the embedded default as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from hf_itp.functional import pessimism

RULES = ("plain sampling", "best_of_n", "pessimism")


@pytest.fixture
def demo(run, policy, reward_model, tmp_path):
    small = (
        "--num-candidates",
        6,
        "--max-new-tokens",
        5,
        "--beta",
        0.5,
        "--output",
        tmp_path / "pictures" / "demo.png",
    )
    return lambda *options: run("demo", "-m", policy, "-r", reward_model, *small, *options)


def test_json_holds_one_pool_per_prompt_and_each_rule_s_law_on_it(demo, tmp_path):
    ended = demo("--json")
    assert ended.code == 0, ended.err
    shown = json.loads(ended.out)
    assert len(shown["prompts"]) == 4
    for record in shown["prompts"]:
        rewards = torch.tensor([candidate["reward"] for candidate in record["candidates"]])
        weights, normalizer = pessimism(rewards, 0.5)
        laws = {name: [c["probabilities"][name] for c in record["candidates"]] for name in ("best_of_n", "pessimism")}
        assert laws["pessimism"] == pytest.approx((weights / 6).tolist(), abs=1e-6)
        assert record["diagnostics"]["normalizer"] == pytest.approx(normalizer.item(), abs=1e-6)
        assert laws["best_of_n"][record["returned"]["best_of_n"]] > 0
        assert laws["pessimism"][record["returned"]["pessimism"]] > 0
        assert rewards[record["returned"]["best_of_n"]] == rewards.max()
        assert record["returned"]["plain sampling"] == 0
    assert set(shown["seconds"]) >= {"loading", "sampling", "reward", "selection", "total"}
    assert shown["picture"] == str(tmp_path / "pictures" / "demo.png")
    assert (tmp_path / "pictures" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_beta_it_shows_the_default_with_the_normalizer_in_units_of_the_reward(
    run, policy, reward_model, tmp_path
):
    small = ("--num-candidates", 6, "--max-new-tokens", 5, "-o", tmp_path / "demo.png")
    ended = run("demo", "-m", policy, "-r", reward_model, *small, "--json")
    for record in json.loads(ended.out)["prompts"]:
        rewards = torch.tensor([candidate["reward"] for candidate in record["candidates"]], dtype=torch.float64)
        # Scaling rewards and beta together keeps the law: 0.2 on z-scores is 0.2 deviations on the rewards.
        weights, normalizer = pessimism(rewards, 0.2 * rewards.std(correction=0).item())
        law = [candidate["probabilities"]["pessimism"] for candidate in record["candidates"]]
        assert law == pytest.approx((weights / 6).tolist(), abs=1e-4)
        assert record["diagnostics"]["normalizer"] == pytest.approx(normalizer.item(), abs=1e-4)


def test_tables_show_the_candidates_from_best_to_worst_and_who_was_returned(demo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    pools = json.loads(demo("--json").out)
    out = demo().out
    for record in pools["prompts"]:
        section = out[out.index(record["prompt"][-1]["content"]) :]
        rewards = sorted((candidate["reward"] for candidate in record["candidates"]), reverse=True)
        places = [section.index(f"{reward:.3f}") for reward in rewards]
        assert all(first <= second for first, second in pairwise(places))
        best = record["candidates"][record["returned"]["best_of_n"]]
        assert re.search(rf"★[^\n]* best_of_n[^\n]* returned \(reward {best['reward']:.3f}\):\n", section)
        assert f"normalizer {record['diagnostics']['normalizer']:.3f}" in section
    means = ", ".join(rf"\S {name} {pools['mean_rewards'][name]:.3f}" for name in RULES)
    assert re.search(f"Mean reward returned: {means}", out)
    assert f"{pools['num_tokens']} tokens drawn" in out and "Picture: " in out


def test_seed_and_beta_decide_everything(demo):
    def pools(*options):
        return [
            [candidate["reward"] for candidate in record["candidates"]]
            for record in json.loads(demo("--json", *options).out)["prompts"]
        ]

    assert pools() == pools("--beta", 2) != pools("--seed", 1)


def test_without_matplotlib_the_tables_come_all_the_same(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = demo()
    assert ended.code == 0
    assert "No picture: it needs matplotlib" in ended.out


@pytest.mark.parametrize("name", ["demo.tiff2", "taken/demo.png"])
def test_picture_that_cannot_be_written_is_an_error_that_names_it(demo, tmp_path, name):
    (tmp_path / "taken").write_text("a file, so no folder")
    ended = demo("--output", tmp_path / name)
    assert ended.code == 1
    assert name in ended.err and "Name a .png file" in ended.err


@pytest.mark.slow
def test_demo_on_the_embedded_default_runs_offline_and_returns_better_responses(tmp_path):
    """Plain sampling's mean reward over four prompts is far below best-of-n's, whatever the seed."""
    command = [sys.executable, "-c", "from hf_itp.cli import main; main()", "demo", "--json"]
    command += ["--output", str(tmp_path / "demo.png"), "--num-candidates", "8", "--max-new-tokens", "24"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    means = shown["mean_rewards"]
    assert means["plain sampling"] < means["best_of_n"]
    assert means["pessimism"] <= means["best_of_n"]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert all(candidate["response"] for record in shown["prompts"] for candidate in record["candidates"])
