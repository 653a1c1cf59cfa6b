"""
Reward models of the Qwen team with a head of two layers: Qwen2.5-Math-RM and WorldPM (one reward), Qwen2.5-Math-PRM
(bad and good at each step).

Their checkpoints bring code written for transformers 4. The body is transformers' own Qwen2, so that code never runs.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Qwen2Config, Qwen2ForSequenceClassification, Qwen2ForTokenClassification

from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, Layout


class Qwen2ForRewardModel(Qwen2ForSequenceClassification):
    """One reward at the last token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.score = _head(config)
        self.post_init()


class Qwen2ForProcessRewardModel(Qwen2ForTokenClassification):
    """Two labels at every token, bad and good; read at `step_token`, which follows each step."""

    step_token = "<extra_0>"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.score = _head(config)
        self.post_init()


def reward_layout(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of [`Qwen2ForRewardModel`] checkpoints."""
    return _layout(Qwen2ForRewardModel, checkpoint, num_labels=1)


def process_layout(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of [`Qwen2ForProcessRewardModel`] checkpoints."""
    return _layout(Qwen2ForProcessRewardModel, checkpoint, num_labels=2)


def _head(config: Any) -> Any:
    width = config.hidden_size
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels))


def _layout(model_class: type, checkpoint: Checkpoint, num_labels: int) -> Layout | None:
    if checkpoint.architecture != model_class.__name__:
        return None
    # The class fixes the number of labels; some configurations do not state it.
    fixed = {"auto_map", "id2label", "label2id", "num_labels"}
    entries = {key: value for key, value in checkpoint.config.items() if key not in fixed}
    return Layout(model_class, {"config": Qwen2Config.from_dict(entries | {"num_labels": num_labels})})
