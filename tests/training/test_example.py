"""Test `examples/train_ctrl.py` from prompts to its table and picture, with a tiny policy, not the embedded one."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "train_ctrl.py"
WORDS = ["bread", "salt", "flour", "water", "mix", "good", "how", "what", "bake", "you"]

pytestmark = [pytest.mark.slow, pytest.mark.uses_global_rng]  # transformers' Trainer seeds it


def test_three_arms_are_trained_measured_and_drawn(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train_ctrl", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    policy = saved_policy(tmp_path / "policy")
    reward = saved(tmp_path / "reward", tiny_classifier("llama"), tiny_tokenizer())
    monkeypatch.setattr(example, "policy_path", lambda: policy)
    monkeypatch.setattr(example, "reward_model_path", lambda: reward)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"\n\nHuman: how do you {w}?\n\nAssistant:"}) for w in WORDS))
    arguments = ["train_ctrl.py", "--quick", "--prompts", str(prompts), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()

    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["raw", "raw", "calibrated", "calibrated", "ctrl", "ctrl"]
    assert all(0 <= float(row["win_rate"]) <= 1 and float(row["kl_se"]) >= 0 for row in rows)
    assert (tmp_path / "out" / "train_ctrl.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "ctrl - raw" in printed and "best-of-4 win rate" in printed
