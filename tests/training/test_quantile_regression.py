"""Test the offline solver: its targets by hand, what it reads, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_itp import QuantileRegressionArguments, QuantileRegressionTrainer, RewardCalibrator
from hf_itp.errors import ArgumentError
from tests.tiny import PromptBoundReward, saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for"]
pytestmark = [pytest.mark.oldest, pytest.mark.uses_global_rng]  # transformers' Trainer seeds it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def trainer(folder, output, reward=None, **options):
    settings = {
        "num_reference": 33, "transform": "identity", "max_completion_length": 4, "max_steps": 2, "use_cpu": True,
        "per_device_train_batch_size": 8, "report_to": "none", "logging_steps": 1, "disable_tqdm": True,
    } | options.pop("overrides", {})  # fmt: skip
    if "pool" not in options:
        options["train_dataset"] = Dataset.from_dict({"prompt": PROMPTS})
    return QuantileRegressionTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward or PromptBoundReward(),
        QuantileRegressionArguments(str(output), **settings),
        processing_class=tiny_tokenizer(),
        **options,
    )


def test_targets_by_hand(folder, tmp_path):
    """Four rewards with a tie, each compared with the other three; identity's log Z is in closed form."""
    path = tmp_path / "pool.jsonl"
    row = {"prompt": PROMPTS[0], "responses": ["a", "b", "c", "d"], "rewards": [1.0, 2.0, 2.0, 3.0]}
    path.write_text(json.dumps(row))
    beta = 0.5
    training = trainer(folder, tmp_path, pool=path, overrides={"beta": beta})
    quantiles = torch.tensor([0.0, (1 + 0.5) / 3, (1 + 0.5) / 3, 1.0], dtype=torch.float64)
    exact = quantiles / beta - math.log(beta * math.expm1(1 / beta))
    torch.testing.assert_close(training._targets(torch.tensor(row["rewards"]).double()), exact)
    training.args.partition = "empirical"
    own = torch.tensor([0.125, 0.5, 0.5, 0.875], dtype=torch.float64) / beta
    torch.testing.assert_close(
        training._targets(torch.tensor(row["rewards"]).double()), quantiles / beta - own.exp().mean().log()
    )


def test_pool_of_another_engine_trains(folder, tmp_path):
    """The pool has only texts: the tokenizer gives the tokens, and a response ends with its end token."""
    path = tmp_path / "pool.jsonl"
    rows = [
        {"prompt": p, "responses": ["yes", "no way", "milk", ""], "rewards": [1.0, 2.0, 3.0, 4.0]} for p in PROMPTS
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    training = trainer(folder, tmp_path / "out", pool=path)
    examples = training._examples(rows)
    assert len(examples) == 8
    assert examples[1]["response_ids"] == [*tiny_tokenizer()("no way")["input_ids"], 2]
    assert examples[3]["response_ids"] == [2]
    training.train()
    assert "kl" in training.state.log_history[0]


def test_first_loss_is_that_of_a_log_ratio_of_zero(folder, tmp_path):
    training = trainer(folder, tmp_path, overrides={"max_steps": 1, "per_device_train_batch_size": 66})
    training.train()
    rewards = training.calibrator.reference_rewards.double()
    expected = torch.stack([training._targets(row) for row in rewards]).square().mean()
    assert training.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert training.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-5)


def test_trained_policy_carries_its_calibration(folder, tmp_path):
    training = trainer(folder, tmp_path)
    training.train()
    training.save_model()
    assert RewardCalibrator.from_pretrained(tmp_path).num_reference == 33
    entry = json.loads((tmp_path / "generation_config.json").read_text())["hf_itp"]
    assert entry["strategy"] == "best_of_n"


def test_both_sources_or_none_are_refused(folder, tmp_path):
    with pytest.raises(ArgumentError, match="`train_dataset` or `pool` must be given"):
        trainer(folder, tmp_path, pool=None)


def test_pool_without_responses_is_refused(folder, tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"prompt": "a", "rewards": [1.0, 2.0]}))
    with pytest.raises(ArgumentError, match="Keep the responses"):
        trainer(folder, tmp_path / "out", pool=path).train()


def test_unknown_partition_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="one of 'exact', 'empirical'"):
        QuantileRegressionArguments(str(tmp_path), partition="learned", use_cpu=True)


def test_responses_without_a_reward_are_left_out(folder, tmp_path):
    """The targets of the others are those of a pool that never had them."""
    rewards = [1.0, None, 2.0, 2.0, None, 3.0]
    texts = ["bake", "salt", "bread", "water", "flour", "cook"]
    kept = [place for place, reward in enumerate(rewards) if reward is not None]
    targets = []
    for name, places in (("all", range(6)), ("kept", kept)):
        path = tmp_path / f"{name}.jsonl"
        row = {"prompt": PROMPTS[0]} | {
            key: [values[place] for place in places] for key, values in (("responses", texts), ("rewards", rewards))
        }
        path.write_text(json.dumps(row))
        training = trainer(folder, tmp_path / name, pool=path, overrides={"beta": 0.5})
        targets.append(training._examples(training._references()))
    assert targets[0] == targets[1] and len(targets[0]) == 4
    assert training.calibrator.reference_rewards.tolist() == [[1.0, 2.0, 2.0, 3.0]]


def test_reward_that_needs_a_state_and_loggers_gets_them(folder, tmp_path):
    steps = []

    def scheduled(prompts, completions, trainer_state, log_metric, log_extra):
        steps.append(trainer_state.global_step)
        log_metric("mine", 1.0)
        return [None if len(completion) % 2 else float(len(completion)) for completion in completions]

    training = trainer(folder, tmp_path, reward=scheduled)
    training.train()
    assert steps and set(steps) == {0}
    assert training.calibrator.fewest_references < 33


def test_too_few_references_with_a_reward_are_refused(folder, tmp_path):
    path = tmp_path / "pool.jsonl"
    row = {
        "prompt": PROMPTS[0],
        "responses": ["a"] * 40,
        "rewards": [float(place) for place in range(20)] + [None] * 20,
    }
    path.write_text(json.dumps(row))
    with pytest.raises(ArgumentError, match="32"):
        trainer(folder, tmp_path, pool=path, overrides={"transform": "exponential", "t": 10.0})
