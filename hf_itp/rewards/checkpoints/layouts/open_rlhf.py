"""
OpenRLHF's reward models: a linear head without a bias at the last token, called `score` or, in older checkpoints,
`value_head`, on any decoder.

Their configurations are the base model's, with two labels where the head has one, and a class name that transformers
does not know. `mean` and `std`, where they are given, are taken out of the rewards by `RewardModel`.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoModelForSequenceClassification

from hf_itp.rewards.checkpoints.checkpoint import Checkpoint
from hf_itp.rewards.checkpoints.layouts.base import Layout


def layout(checkpoint: Checkpoint) -> Layout | None:
    """For checkpoints that carry one of OpenRLHF's own entries."""
    config = checkpoint.config
    if checkpoint.architecture.endswith("ForSequenceClassification"):
        return None
    if checkpoint.architecture != "RewardModel" and not {"normalize_reward", "value_head_prefix"} & set(config):
        return None
    head = str(config.get("value_head_prefix") or "value_head")
    options: dict[str, Any] = {"key_mapping": {rf"^{re.escape(head)}\.": "score."}}
    if not {"id2label", "num_labels"} & set(config):
        options["num_labels"] = 1
    return Layout(AutoModelForSequenceClassification, options)
