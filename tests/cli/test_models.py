"""Policies and reward models from what stands after `--model` and `--reward-model`."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils import logging

from hf_itp.cli.models import load_policy, load_reward_models, loading_bars
from hf_itp.errors import LoadError
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer


def answers(policy, prompts):
    output = policy.generate(
        prompts,
        strategy="best_of_n",
        reward_model=lambda prompts, completions, **_: [float(len(completion)) for completion in completions],
        num_candidates=3,
        max_new_tokens=5,
        seed=0,
    )
    return [[ids.tolist() for ids in pool] for pool in output.candidates]


def test_prompts_of_different_lengths_share_a_batch_without_changing_each_other(policy):
    loaded = load_policy(str(policy))
    chats = [[{"role": "user", "content": text}] for text in ("how do i bake bread", "so")]
    assert answers(loaded, chats) == [answers(loaded, [chat])[0] for chat in chats]


def test_policy_without_a_pad_token_batches_all_the_same(tmp_path):
    folder = saved_policy(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_policy(str(folder))
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    texts = ["how do i bake bread", "so"]
    assert answers(loaded, texts) == [answers(loaded, [text])[0] for text in texts]


# peft draws the adapter's first weights from torch's global random numbers.
@pytest.mark.uses_global_rng
def test_adapter_folder_is_a_policy(tmp_path):
    base = saved_policy(tmp_path)
    model = tiny_model("llama")
    model.name_or_path = str(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    loaded, ids = load_policy(str(folder)), torch.tensor([[1, 8, 9]])
    torch.testing.assert_close(loaded.model(ids).logits, adapted(ids).logits)
    assert not torch.allclose(loaded.model(ids).logits, load_policy(str(base)).model(ids).logits)


def test_dtype_is_the_checkpoint_s_unless_named(policy):
    assert load_policy(str(policy)).model.dtype == torch.float32
    assert load_policy(str(policy), dtype="bfloat16").model.dtype == torch.bfloat16


def test_policy_folder_without_tokenizer_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="that a folder holds both weights and tokenizer"):
        load_policy(str(tmp_path))


def test_one_reward_model_is_itself_and_several_are_a_list(reward_model):
    assert isinstance(load_reward_models([str(reward_model)]), RewardModel)
    assert [type(model) for model in load_reward_models([str(reward_model)] * 2)] == [RewardModel] * 2


@pytest.mark.parametrize("label", ["1", "LABEL_1"])
def test_label_is_a_name_or_an_index(tmp_path, label):
    tiny_classifier("llama", num_labels=3).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_reward_models([str(tmp_path)], label=label).label == 1


def test_loading_bars_are_hidden_within_and_back_afterwards():
    assert logging.is_progress_bar_enabled()
    with loading_bars(shown=False):
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
