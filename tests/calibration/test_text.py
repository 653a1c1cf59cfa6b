"""Test that references and rollouts are scored on the same text: the one that was written."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from hf_itp import CTRLArguments, CTRLTrainer, RewardCalibrator
from tests.sampling.test_text import cut, t5
from tests.tiny import tiny_model

# A word each: what comes next may begin with a space.
PROMPTS = ["the", "is"]


def tokenizer_and_policy(tmp_path):
    tokenizer = t5()
    policy = tiny_model("llama", vocab_size=len(tokenizer))
    policy.generation_config.eos_token_id = policy.generation_config.pad_token_id = tokenizer.eos_token_id
    policy.save_pretrained(tmp_path / "policy")
    policy.config.name_or_path = policy.config._name_or_path = str(tmp_path / "policy")
    return tokenizer, policy


def as_written(tokenizer, prompt, ids):
    before = tokenizer(prompt)["input_ids"]
    return cut(*(tokenizer.decode(row, skip_special_tokens=True) for row in (before + list(ids), before)))


def length(prompts, completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def test_references_are_read_as_written(tmp_path):
    tokenizer, policy = tokenizer_and_policy(tmp_path)
    RewardCalibrator.fit(
        policy, length, PROMPTS, num_reference=24, seed=3, tokenizer=tokenizer, output_dir=tmp_path / "pool",
        max_new_tokens=4,
    )  # fmt: skip
    pool = next(path for path in (tmp_path / "pool").iterdir() if path.suffix == ".jsonl")
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    apart = 0
    for row in rows:
        for response, ids, reward in zip(row["responses"], row["response_ids"], row["rewards"], strict=True):
            assert response == as_written(tokenizer, row["prompt"], ids) and reward == len(response)
            apart += response != tokenizer.decode(ids, skip_special_tokens=True)
    assert apart > 0, "some begin with a space, which a decoding by itself drops"


@pytest.mark.uses_global_rng  # transformers' Trainer seeds it
def test_rollouts_are_read_as_references_are(tmp_path):
    tokenizer, policy = tokenizer_and_policy(tmp_path)
    seen = []

    def watched(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return length(prompts, completions)

    trainer = CTRLTrainer(
        policy,
        watched,
        CTRLArguments(
            str(tmp_path / "run"), num_reference=16, transform="identity", beta=0.5, max_completion_length=4,
            max_steps=1, per_device_train_batch_size=16, num_generations=8, report_to="none", disable_tqdm=True,
            use_cpu=True, save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    references, rollouts = seen[:32], seen[32:]
    assert len(rollouts) == 16
    assert all(completion == as_written(tokenizer, prompt, ids) for prompt, completion, ids in seen)
    for drawn in (references, rollouts):
        assert any(completion != tokenizer.decode(ids, skip_special_tokens=True) for _, completion, ids in drawn)
