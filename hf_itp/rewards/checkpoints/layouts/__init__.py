"""
Layouts of reward models: one family, one file, chosen by what the checkpoint says of itself.

A new family is a new file here. It defines `reward_layout` (one reward per response) or `process_layout` (one per
step), a function from a [`Checkpoint`] to its [`Layout`], `None` for a checkpoint of another family.
`docs/reward_models.md` lists the families.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, Layout
from hf_itp.rewards.checkpoints.layouts import own_code
from hf_itp.rewards.checkpoints.layouts.refused import refuse, refuse_as_process

__all__ = ["process_layout", "reward_layout"]


def reward_layout(checkpoint: Checkpoint, trust_remote_code: bool) -> Layout:
    """
    Return how to load a checkpoint that gives a response one reward.

    Raises:
        `RewardModelError`: If its configuration says it is not one, or it needs code that is not allowed to run.
    """
    if checkpoint.adapter:
        return Layout(AutoModelForSequenceClassification)
    if (found := _of_family("reward_layout", checkpoint)) is not None:
        return found
    refuse(checkpoint)
    own = own_code.layout(checkpoint, (AutoModelForSequenceClassification, AutoModel), trust_remote_code)
    return own or Layout(AutoModelForSequenceClassification)


def process_layout(checkpoint: Checkpoint, language_model: bool, trust_remote_code: bool) -> Layout:
    """
    Return how to load a checkpoint that judges the steps of a response.

    Args:
        checkpoint ([`Checkpoint`]): Its description.
        language_model (`bool`): Whether it judges a step by the token it would write next.
        trust_remote_code (`bool`): Whether its own code may run.

    Raises:
        `RewardModelError`: If its configuration says it is not one, or it needs code that is not allowed to run.
    """
    known: Any = AutoModelForCausalLM if language_model else AutoModelForTokenClassification
    if checkpoint.adapter:
        return Layout(known)
    if not language_model and (found := _of_family("process_layout", checkpoint)) is not None:
        return found
    refuse_as_process(checkpoint, language_model)
    own = own_code.layout(checkpoint, (known,) if language_model else (known, AutoModel), trust_remote_code)
    return own or Layout(known)


def _of_family(function: str, checkpoint: Checkpoint) -> Layout | None:
    """Ask the files of this folder that define `function`, in alphabetical order, and return the first layout."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        family = getattr(importlib.import_module(f"{__name__}.{name}"), function, None)
        if family is not None and (found := family(checkpoint)) is not None:
            return found
    return None
