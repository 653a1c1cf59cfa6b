"""
How each family of reward models is read: one family, one file, chosen by what the checkpoint says of itself.

`docs/reward_models.md` lists them. A new one is a file with a function from a [`Checkpoint`] to a [`Layout`] or
`None`, and a name here.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_itp.rewards.checkpoints.checkpoint import Checkpoint
from hf_itp.rewards.checkpoints.layouts import open_assistant, open_rlhf, own_code, qwen
from hf_itp.rewards.checkpoints.layouts.base import Layout
from hf_itp.rewards.checkpoints.layouts.refused import refuse, refuse_as_process

__all__ = ["Layout", "process_layout", "scalar_layout"]

_FAMILIES = (qwen.reward_layout, open_assistant.layout, open_rlhf.layout)


def scalar_layout(checkpoint: Checkpoint, trust_remote_code: bool) -> Layout:
    """
    How to load a checkpoint that gives a response one reward.

    Raises:
        `RewardModelError`: If it is none, by what it says of itself, or brings code that the caller does not allow.
    """
    if checkpoint.adapter:
        return Layout(AutoModelForSequenceClassification)
    for family in _FAMILIES:
        if (found := family(checkpoint)) is not None:
            return found
    refuse(checkpoint)
    own = own_code.layout(checkpoint, (AutoModelForSequenceClassification, AutoModel), trust_remote_code)
    return own or Layout(AutoModelForSequenceClassification)


def process_layout(checkpoint: Checkpoint, language_model: bool, trust_remote_code: bool) -> Layout:
    """
    How to load a checkpoint that judges the steps of a response.

    Args:
        checkpoint ([`Checkpoint`]): What it says of itself.
        language_model (`bool`): Whether it judges by what it would say.
        trust_remote_code (`bool`): Whether its own code may run.

    Raises:
        `RewardModelError`: If it is none, by what it says of itself, or brings code that the caller does not allow.
    """
    known: Any = AutoModelForCausalLM if language_model else AutoModelForTokenClassification
    if checkpoint.adapter:
        return Layout(known)
    if not language_model and (found := qwen.process_layout(checkpoint)) is not None:
        return found
    refuse_as_process(checkpoint, language_model)
    own = own_code.layout(checkpoint, (known,) if language_model else (known, AutoModel), trust_remote_code)
    return own or Layout(known)
