"""Test the keywords of reward models: every signature that takes them shows them, others are refused by name."""

from __future__ import annotations

import inspect

import pytest

from hf_itp.errors import ArgumentError
from hf_itp.rewards import ProcessRewardModel, RewardModel
from hf_itp.rewards.options import ProcessRewardModelOptions, RewardModelOptions
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_tokenizer

BOTH = [(RewardModel, RewardModelOptions), (ProcessRewardModel, ProcessRewardModelOptions)]


@pytest.mark.parametrize(("model_class", "options"), BOTH)
def test_signatures_show_every_option(model_class, options):
    constructor = inspect.signature(model_class).parameters
    loader = inspect.signature(model_class.from_pretrained).parameters
    for name, parameter in inspect.signature(options).parameters.items():
        assert constructor[name] == loader[name] == parameter
    assert list(constructor)[:2] == ["model", "tokenizer"] and constructor.keys() - {"model", "tokenizer"} < set(
        loader
    )
    assert {"tokenizer", "device", "device_map", "dtype", "revision", "token", "trust_remote_code"} <= set(loader)


@pytest.mark.parametrize(("model_class", "options"), BOTH)
def test_unknown_option_is_refused_by_name(model_class, options):
    model = tiny_classifier("llama", num_labels=2, of_tokens=model_class is ProcessRewardModel)
    with pytest.raises(ArgumentError, match=r"`max_len` must be an option .* Choose from batch_size, max_length, "):
        model_class(model, tiny_tokenizer(), max_len=8)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch_size": 0}, 'Or pass "auto"'),
        ({"aggregate": "sum"}, "Choose one of them"),
        ({"separator": ""}, r"got an empty one\. Pass e\.g\. separator="),
        ({"good_token": "+"}, r"got '\+' and None\. Pass both for a language model"),
        ({"good_token": "+", "bad_token": "+"}, r"and differ, got '\+' and '\+'"),
    ],
)
def test_options_that_break_a_rule_are_refused(keywords, message):
    with pytest.raises(ArgumentError, match=message):
        ProcessRewardModelOptions.from_keywords(keywords)
