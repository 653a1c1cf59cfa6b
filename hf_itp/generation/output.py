"""
Output of `generate(strategy=..., return_dict_in_generate=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class StrategyOutput(ModelOutput):
    """
    Hold the selected responses, and how they were selected.

    Shapes: `B` prompts, `N` candidates drawn and `k` responses returned per prompt.

    Args:
        sequences (`torch.LongTensor` of shape `(B * k, L)`):
            Prompt and response of each winner, as `generate` returns them: padded on the right.
        rewards (`torch.FloatTensor` of shape `(B, k)`):
            Rewards of the winners, in the order selected.
        candidates (`list[list[torch.LongTensor]]`):
            For each prompt the token ids of every response drawn, end token included, without padding. With
            `early_rejection` some are only the first tokens of a response, with the reward of these.
        candidate_rewards (`torch.FloatTensor` of shape `(B, N)`):
            Rewards of all candidates. If a strategy draws further ones (`pessimism(pool="fresh")`) there are more than
            `N` columns, NaN where a prompt needed no further draw.
        probabilities (`torch.DoubleTensor` of shape `(B, N)`, *optional*):
            Exact law of the first winner given the pool; `None` if it depends on candidates never drawn.
        selected (`torch.LongTensor` of shape `(B, k)`):
            Index of each winner among its prompt's candidates.
        diagnostics (`dict`):
            `path` of the forward passes and `path_reason`, `num_tokens` drawn `(B, N)`, `seconds` per stage,
            `effective_sample_size` `(B,)`, and what the strategy (`normalizer`, `acceptance_rate`, `fallbacks`, ...)
            and `early_rejection` add.
    """

    sequences: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    candidates: list[list[torch.Tensor]] | None = None
    candidate_rewards: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    selected: torch.Tensor | None = None
    diagnostics: dict[str, Any] | None = None
