"""Test references without a reward: left out, counted, and never lost when the judge fails."""

from __future__ import annotations

import json
import math

import pytest
import torch

from hf_itp import RewardCalibrator, ScoringError
from hf_itp.errors import ArgumentError
from hf_itp.functional import calibrate_rewards
from hf_itp.pools.file import read_pool
from tests.tiny import PromptBoundReward, tiny_model, tiny_tokenizer

NONE = math.nan
PROMPTS = ["how do you bake bread", "what is salt for", "when do you cook", "what is cold"]
FILES = ("calibration.json", "calibration.safetensors", "reference_pool.jsonl")


def fitted(reward, output_dir=None, **options):
    settings = {"num_reference": 40, "tokenizer": tiny_tokenizer(), "max_new_tokens": 4, "seed": 1} | options
    return RewardCalibrator.fit(tiny_model("llama"), reward, PROMPTS, output_dir=output_dir, **settings)


class Abstaining(PromptBoundReward):
    """Reward that has none for the lower half."""

    def __call__(self, prompts, completions, **kwargs):
        return [reward if reward > 0.5 else None for reward in super().__call__(prompts, completions)]


def test_quantiles_are_among_the_references_with_a_reward():
    table = torch.tensor([[3.0, NONE, 1.0, 2.0], [9.0, 7.0, NONE, NONE], [0.0, 1.0, 2.0, 3.0]])
    calibrator = RewardCalibrator(["a", "b", "c"], table)
    assert calibrator.no_reward.tolist() == [1, 2, 0] and calibrator.fewest_references == 2
    rewards = torch.tensor([[2.0, 0.5, 8.0], [8.0, 7.0, 99.0], [1.5, 2.0, -1.0]])
    for row, prompt in enumerate("abc"):
        known = table[row][~table[row].isnan()][None]
        expected = calibrate_rewards(rewards[row : row + 1], known)
        torch.testing.assert_close(calibrator.calibrate([prompt], rewards[row : row + 1]), expected.float())
    below, equal, total = calibrator.counts(["b", "c"], torch.tensor([7.0, 7.0]))
    assert (below.tolist(), equal.tolist(), total.tolist()) == ([0.0, 4.0], [1.0, 0.0], [2.0, 4.0])


def test_fit_counts_them_and_a_saved_calibration_knows_them(tmp_path):
    calibrator, full = fitted(Abstaining(), tmp_path), fitted(PromptBoundReward())
    for row in range(4):
        known = full.reference_rewards[row][full.reference_rewards[row] > 0.5]
        found = calibrator.reference_rewards[row]
        assert found[~found.isnan()].equal(known)
        assert int(calibrator.no_reward[row]) == 40 - len(known) > 0
    loaded = RewardCalibrator.from_pretrained(tmp_path)
    assert loaded.no_reward.equal(calibrator.no_reward)
    sidecar = json.loads((tmp_path / "calibration.json").read_text())
    assert sidecar["no_reward"] == int(calibrator.no_reward.sum())
    lines = (tmp_path / "reference_pool.jsonl").read_text()
    assert "NaN" not in lines and "null" in lines
    again = RewardCalibrator.from_pool(tmp_path / "reference_pool.jsonl")
    torch.testing.assert_close(again.reference_rewards, calibrator.reference_rewards, equal_nan=True)


def test_prompt_with_hardly_any_is_named():
    with pytest.raises(ArgumentError, match=r"Prompt 1 must have at least 2 references with a reward, got 1 of 3"):
        RewardCalibrator(["a", "b"], torch.tensor([[1.0, 2.0, 3.0], [NONE, 5.0, NONE]]))


@pytest.mark.parametrize("written", ["NaN", "Infinity", '"1.0"', "true"])
def test_pool_says_null_and_nothing_else_for_no_reward(tmp_path, written):
    file = tmp_path / "pool.jsonl"
    file.write_text(
        '{"prompt": "a", "rewards": [1.0, null, 2.0]}\n{"prompt": "b", "rewards": [1.0, 2.0, ' + written + "]}"
    )
    with pytest.raises(ArgumentError, match=r"finite numbers, or null for no reward, got .* in line 2 of"):
        read_pool(file)


class Failing(PromptBoundReward):
    def __init__(self, *failures):
        super().__init__()
        self.failures, self.asked = failures, 0

    def __call__(self, prompts, completions, **kwargs):
        self.asked += 1
        if self.asked in self.failures:
            raise ConnectionError("the judge is down")
        return super().__call__(prompts, completions)


def test_judge_that_fails_loses_nothing_and_nothing_is_drawn_again(tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = fitted(PromptBoundReward(), whole)
    counts = []
    import hf_itp.pools.draw as drawing

    draw = drawing.draw_described
    monkeypatch.setattr(
        drawing, "draw_described", lambda *given, **named: [counts.append(len(given[2])), draw(*given, **named)][1]
    )
    # Two prompts at a time: the second draw cannot be scored, twice.
    for failures in ((2,), (1,)):
        with pytest.raises(ScoringError, match="the judge is down") as raised:
            fitted(Failing(*failures), resumed)
        assert isinstance(raised.value.__cause__, ConnectionError)
        rows = read_pool(whole / "reference_pool.jsonl")
        assert [[ids.tolist() for ids in pool] for pool in raised.value.candidates] == [
            row["response_ids"] for row in rows
        ]
        assert counts == [2, 2]
    calibrator = fitted(PromptBoundReward(), resumed)
    assert counts == [2, 2] and calibrator.reference_rewards.equal(expected.reference_rewards)
    for name in FILES:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_failure_without_a_folder_carries_all_that_was_drawn():
    with pytest.raises(ScoringError) as raised:
        fitted(Failing(2))
    assert [len(pool) for pool in raised.value.candidates] == [40] * 4


def test_loggers_are_there_and_a_state_is_refused_before_drawing():
    def logs(prompts, completions, log_metric, log_extra, completion_ids):
        log_metric("mine", 1.0)
        log_extra("ids", completion_ids)
        return [float(sum(ids)) for ids in completion_ids]

    def scheduled(prompts, completions, trainer_state):
        raise AssertionError("called")

    assert fitted(logs).num_reference == 40
    with pytest.raises(TypeError, match="needs `trainer_state`"):
        fitted(scheduled)
