"""Test `hf-itp evaluate`: what it compares by default, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_itp import RewardModel
from hf_itp.evaluation import evaluate_policy
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for", "when do you eat bread"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
SMALL = ("-g", 5, "-n", 2, "--max-new-tokens", 4, "-q")

pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("reward"), tiny_classifier("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def moved(base, tmp_path_factory):
    """Save a policy of other weights."""
    folder = tmp_path_factory.mktemp("moved")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.std())
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "held_out.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    return path


def trained(run, base, reward, prompts, folder, *more):
    shown = run(
        "train", "--model", base, "--reward_model", reward, "--train_file", prompts, "--output_dir", folder,
        "--solver", "quantile_regression", "--num_reference", 8, "--transform", "identity",
        "--max_completion_length", 4, "--max_steps", 2, "--learning_rate", "1e-2", "--report_to", "none",
        "--use_cpu", "true", *more,
    )  # fmt: skip
    assert shown.code == 0, shown.err
    return folder


def test_table_and_json_hold_what_the_library_finds(run, base, moved, reward, prompts, tmp_path):
    shown = run("evaluate", moved, "--reference", base, "-r", reward, "-f", prompts, *SMALL, "--seed", 4,
                "--json", tmp_path / "new" / "result.json")  # fmt: skip
    assert shown.code == 0, shown.err
    written = json.loads((tmp_path / "new" / "result.json").read_text())
    by_hand = evaluate_policy(
        AutoModelForCausalLM.from_pretrained(moved), AutoModelForCausalLM.from_pretrained(base),
        RewardModel.from_pretrained(reward), CHATS, num_candidates=2, num_responses=5, seed=4, max_new_tokens=4,
        tokenizer=tiny_tokenizer(), progress=False,
    )  # fmt: skip
    assert written == json.loads(json.dumps(by_hand.to_dict()))
    assert written["num_prompts"] == 3 and [row["prompt"] for row in written["per_prompt"]] == CHATS
    for name, values in written["results"].items():
        assert f"{values['mean']:.3f}" in shown.out, name
        assert f"{values['low']:.3f} to {values['high']:.3f}" in shown.out, name
    assert "best_of_n of 2 beats best_of_n of 2" in " ".join(shown.out.split())


def test_json_on_stdout_is_nothing_else(run, base, moved, reward, prompts):
    shown = run("evaluate", moved, "--reference", base, "-r", reward, "-f", prompts, *SMALL, "--json", "-",
                "-s", "pessimism", "--beta", 0.3)  # fmt: skip
    written = json.loads(shown.out)
    assert written["settings"]["strategy"]["name"] == "pessimism" and written["settings"]["strategy"]["beta"] == 0.3
    assert "pessimism_win_rate" in written["results"] and "nats" in shown.err


def test_trained_folder_is_compared_with_what_it_was_trained_from(run, base, reward, prompts, tmp_path):
    """Of a whole model the calibration says from what; strategy and N are those that the policy recommends."""
    folder = trained(run, base, reward, prompts, tmp_path / "whole")
    shown = run("evaluate", folder, "-r", reward, "-f", prompts, "-g", 5, "--max-new-tokens", 4, "--json", "-")
    assert shown.code == 0, shown.err
    written = json.loads(shown.out)
    assert written["settings"]["reference"] == str(base) and written["settings"]["num_candidates"] == 4
    assert written["results"]["kl"]["mean"] != 0
    # The calibration of the training holds these prompts.
    shown = run("evaluate", folder, "-r", reward, "-f", prompts, "-g", 5, "--json", "-", "--calibration", folder)
    assert shown.code == 0, shown.err
    settings = json.loads(shown.out)["settings"]
    assert settings["num_reference"] == 8 and settings["references"] == "of the calibration"
    assert settings["sampling"]["max_new_tokens"] == 4

    adapter = trained(run, base, reward, prompts, tmp_path / "adapter", "--lora_r", 2)
    shown = run("evaluate", adapter, "-r", reward, "-f", prompts, "-g", 5, "--max-new-tokens", 4, "--json", "-")
    assert shown.code == 0, shown.err
    written = json.loads(shown.out)
    assert written["settings"]["reference"] == f"{base} without adapters" and written["results"]["kl"]["mean"] != 0

    (tmp_path / "other").mkdir()
    other = saved_policy(tmp_path / "other", seed=9)
    for file in ("model.safetensors", "config.json"):
        (Path(base) / f"{file}.kept").write_bytes((Path(base) / file).read_bytes())
        (Path(base) / file).write_bytes((other / file).read_bytes())
    try:
        shown = run("evaluate", folder, "-r", reward, "-f", prompts, *SMALL)
        assert shown.code == 1 and "of other weights" in shown.err
    finally:
        for file in ("model.safetensors", "config.json"):
            (Path(base) / f"{file}.kept").replace(Path(base) / file)


def test_evaluation_resumes_in_its_folder(run, base, moved, reward, prompts, tmp_path):
    line = ("evaluate", moved, "--reference", base, "-r", reward, "-f", prompts, *SMALL, "--json", "-",
            "--output-dir", tmp_path / "kept")  # fmt: skip
    first = run(*line)
    pool = tmp_path / "kept" / "policy" / "reference_pool.jsonl"
    before = pool.read_bytes()
    # A reward that no model gave shows that the pool was read.
    rows = [json.loads(text) for text in before.decode().splitlines()]
    rows[0]["rewards"][0] = 1000.0
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = run(*line)
    assert first.code == second.code == 0 and json.loads(second.out)["per_prompt"][0]["reward"] > 100


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--reference", "BASE"), "`--reward-model` must be given for a policy that recommends none"),
        (("-r", "REWARD"), "`--reference` must be given for a policy without adapters"),
        (("-r", "REWARD", "--reference", "BASE", "-n", 6), "`num_responses` must be an integer of at least 6"),
        (("-r", "REWARD", "--reference", "BASE", "-s", "pesimism"), "Unknown strategy"),
        (("-r", "REWARD", "--reference", "BASE", "--beta", 0.1), "has no field `beta`"),
        (("-r", "REWARD", "--reward_funcs", "other"), "are two names of one option"),
        (("-r", "REWARD", "--referenc", "BASE"), "--reference"),
        (("-r", "REWARD", "--dataset_test_split", "dev"), "`--dataset-test-split` must come with `--dataset-name`"),
        (("-r", "REWARD", "--chat_template_kwargs", "[1]"), "must be a JSON object"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, base, moved, reward, prompts, more, told):
    known = {"BASE": base, "REWARD": reward}
    shown = run("evaluate", moved, "-f", prompts, "-g", 5, "-q", *[known.get(word, word) for word in more])
    assert shown.code in (1, 2) and told in shown.err, shown.err
