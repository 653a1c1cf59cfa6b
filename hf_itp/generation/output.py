"""
Output of `generate(strategy=..., return_dict_in_generate=True)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hf_itp.sampling.text import ResponseReader


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
            Rewards of all candidates, NaN for those without one. If a strategy draws further ones
            (`pessimism(pool="fresh")`) there are more than `N` columns, NaN where a prompt needed no further draw.
        probabilities (`torch.DoubleTensor` of shape `(B, N)`, *optional*):
            Exact law of the first winner given the pool, 0 for candidates without a reward; `None` if it depends on
            candidates never drawn.
        selected (`torch.LongTensor` of shape `(B, k)`):
            Index of each winner among its prompt's candidates.
        diagnostics (`dict`):
            `path` of the forward passes and `path_reason`, `num_tokens` drawn `(B, N)`, `seconds` per stage,
            `effective_sample_size` and `no_reward`, the number of candidates without one, both `(B,)`; `reward_log` if
            the reward logs: `metrics` by name, and `extra` by column, a list per prompt with an entry per candidate;
            and what the strategy (`normalizer`, `acceptance_rate`, `fallbacks`, ...)
            and `early_rejection` add.
        finish_reasons (`list[list[str]]`):
            Why each candidate ended: `"stop"` by an end token, a stop string or another criterion; `"length"` where
            `max_new_tokens` or `max_length` cut it off; `"time"` where `max_time` did; `"rejected"` by
            `early_rejection`.
        texts (`list[list[str]]`):
            Text of each winner, in the order selected: what it adds to its prompt, without special tokens.
        prompt_ids (`list[list[int]]`):
            The tokens that the candidates of each prompt continue, without padding.
    """

    sequences: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    candidates: list[list[torch.Tensor]] | None = None
    candidate_rewards: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    selected: torch.Tensor | None = None
    diagnostics: dict[str, Any] | None = None
    finish_reasons: list[list[str]] | None = None
    texts: list[list[str]] | None = None
    prompt_ids: list[list[int]] | None = None

    def to_records(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """
        Return a row per candidate, prompt by prompt, ready for `pandas.DataFrame` or a JSON lines file.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The policy's.

        Returns:
            `list[dict]`: With the keys `prompt` and `candidate` (indices), `text` (what the response adds to its
            prompt, without special tokens), `reward` and `probability` of being returned first (both `None` where
            there is none), `num_tokens` (its end token included), `finish_reason`, and `selected`: 0 for the first
            response returned, 1 for the second, `None` for one that was not returned.

        Examples:

        ```python
        >>> import pandas
        >>> frame = pandas.DataFrame(output.to_records(tokenizer))  # doctest: +SKIP
        >>> frame.groupby("prompt").reward.max()  # doctest: +SKIP

        ```
        """
        assert self.candidates is not None and self.candidate_rewards is not None and self.selected is not None
        assert self.finish_reasons is not None and self.prompt_ids is not None
        records = []
        for row, pool in enumerate(self.candidates):
            read = ResponseReader(tokenizer, self.prompt_ids[row])
            rewards = self.candidate_rewards[row].tolist()
            # Candidates beyond the first pool have no probability.
            law = [] if self.probabilities is None else self.probabilities[row].tolist()
            ranks = {index: rank for rank, index in enumerate(self.selected[row].tolist())}
            records += [
                {
                    "prompt": row,
                    "candidate": index,
                    "text": read(ids.tolist()),
                    "reward": None if math.isnan(rewards[index]) else rewards[index],
                    "probability": law[index] if index < len(law) else None,
                    "num_tokens": len(ids),
                    "finish_reason": self.finish_reasons[row][index],
                    "selected": ranks.get(index),
                }
                for index, ids in enumerate(pool)
            ]
        return records
