"""
OpenAssistant's reward models on Pythia: GPT-NeoX with a biased head `out_proj` at the last token, whose class
transformers never had.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForSequenceClassification

from hf_itp.errors import RewardModelError
from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, Layout


class GPTNeoXRewardModel(GPTNeoXForSequenceClassification):
    """One reward at the last token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()


def reward_layout(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of checkpoints of the model type `gpt_neox_reward_model`."""
    if checkpoint.config.get("model_type") != "gpt_neox_reward_model":
        return None
    pooling = checkpoint.config.get("pooling") or "last"
    if pooling != "last":
        raise RewardModelError(
            f"Reward model '{checkpoint.name}' must pool the last token, got `pooling` {pooling!r} in its "
            "configuration. Wrap it in a callable f(prompts, completions, **kwargs)."
        )
    entries = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "auto_map")}
    config = GPTNeoXConfig.from_dict(entries | {"num_labels": 1})
    return Layout(GPTNeoXRewardModel, {"config": config, "key_mapping": {r"^out_proj\.": "score."}})
