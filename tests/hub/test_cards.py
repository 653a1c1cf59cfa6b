"""Test that cards parse, validate, and leave no gap of the template unfilled."""

from __future__ import annotations

import re

import pytest
import torch
from huggingface_hub import ModelCard

from hf_itp import RewardCalibrator
from hf_itp.hub import CardFacts, calibrator_card, policy_card, reward_model_card

ENTRY = {"strategy": "pessimism", "num_candidates": 8, "reward_model": "org/reward", "beta": 0.1}
CALIBRATOR = RewardCalibrator(["a"], torch.tensor([[0.0, 1.0]]), seed=1)
BARE = CardFacts("org/policy")
FULL = CardFacts(
    "org/policy", base_model="org/base", license="apache-2.0", language="en", datasets=["org/prompts"],
    training={"steps": "100", "transform of the calibrated reward": "Exponential(t=10)"},
    results=[
        {"name": "win rate", "value": 0.61, "low": 0.58, "high": 0.64},
        {"name": "best of 4 win rate", "value": 0.7},
    ],
    results_on="100 held-out prompts", picture="scaling.png", limits=["English only."], extra_tags=["ctrl"],
)  # fmt: skip

CARDS = {
    "bare policy": lambda: policy_card(BARE, {}),
    "policy with a recommendation": lambda: policy_card(BARE, ENTRY),
    "full policy": lambda: policy_card(FULL, ENTRY, CALIBRATOR),
    "bare calibrator": lambda: calibrator_card(BARE, CALIBRATOR),
    "full calibrator": lambda: calibrator_card(FULL, CALIBRATOR),
    "bare reward model": lambda: reward_model_card(BARE),
    "full reward model": lambda: reward_model_card(
        FULL, accuracy={"value": 0.66, "low": 0.62, "high": 0.7, "on": "500 pairs"}
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_card_parses_and_has_no_open_gap(name):
    card = ModelCard(str(CARDS[name]()))
    assert "hf-itp" in card.data.tags
    text = card.content
    assert not re.search(r"{{|}}|{%|%}|\bNone\b|undefined|\bTODO\b|More Information", text)
    assert not re.search(r"\n{4,}", text)
    assert "# policy" in text and "## Limits" in text


def test_full_card_says_what_was_measured():
    card = policy_card(FULL, ENTRY, CALIBRATOR)
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/prompts"]
    assert "custom_generate" in card.data.tags
    rates = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert rates == {"win rate": 0.61, "best of 4 win rate": 0.7}
    for said in ("0.610 | 0.580 to 0.640", "scaling.png", "English only.", '"beta": 0.1', 'strategy="auto"',
                 "trust_remote_code=True", "hf-itp generate --model org/policy", "Additional Arguments",
                 "Output Type changes", "Base model"):  # fmt: skip
        assert said in card.content, said


def test_local_folders_are_no_base_models(tmp_path):
    card = policy_card(CardFacts("org/policy", base_model=str(tmp_path)), {})
    assert card.data.base_model is None


def test_names_are_text_in_a_card():
    """A pushed name cannot open a block of the template, since values are not templates."""
    card = policy_card(CardFacts("org/policy", limits=["{{ 7 * 7 }} {% raw %}"]), {})
    assert "{{ 7 * 7 }} {% raw %}" in card.content and "49" not in card.content
