"""Test the reward models that `--reward-model` loads, and progress bars while models load."""

from __future__ import annotations

import pytest
from transformers.utils import logging

from hf_itp.cli.models import load_reward_models, loading_bars
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_tokenizer


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
