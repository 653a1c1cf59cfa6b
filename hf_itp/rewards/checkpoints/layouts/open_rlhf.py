"""
OpenRLHF's reward models: a linear head without a bias at the last token, called `score` or, in older checkpoints,
`value_head`, on any decoder.

Their configurations are the base model's, with two labels where the head has one, and a class name that transformers
does not know. `RewardModel` standardizes the rewards by the configuration's `mean` and `std`.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoModelForSequenceClassification

from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, Layout


def reward_layout(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of checkpoints that carry one of OpenRLHF's own entries."""
    config = checkpoint.config
    if checkpoint.architecture.endswith(("ForSequenceClassification", "ForRewardModel")):
        return None
    if checkpoint.architecture != "RewardModel" and not {"normalize_reward", "value_head_prefix"} & set(config):
        return None
    head = str(config.get("value_head_prefix") or "value_head")
    options: dict[str, Any] = {"key_mapping": {rf"^{re.escape(head)}\.": "score."}}
    if not {"id2label", "num_labels"} & set(config):
        options["num_labels"] = 1
    return Layout(AutoModelForSequenceClassification, options)
