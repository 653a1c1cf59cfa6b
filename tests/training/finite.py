"""
World to train in: one prompt, 85 responses, rewards that differ, and the exact optimum of every objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_itp.functional import FiniteTradeoff
from tests.tiny import EOS, tiny_tokenizer
from tests.worlds.laws import finite_world, response_law

PROMPT = "user user <unk>"
MAX_NEW_TOKENS = 3


@dataclass
class TrainingWorld:
    folder: Path
    tokenizer: PreTrainedTokenizerFast
    responses: list[tuple[int, ...]]
    reference: torch.Tensor
    rewards: torch.Tensor

    def policy(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def prompts(self, count: int = 1) -> Dataset:
        return Dataset.from_dict({"prompt": [PROMPT] * count})

    def reward(self) -> Any:
        table = dict(zip(self.responses, self.rewards.tolist(), strict=True))

        def table_reward(prompts: list, completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
            return [table[tuple(map(int, ids))] for ids in completion_ids]

        return table_reward

    def learned(self, model: PreTrainedModel) -> FiniteTradeoff:
        """Return the exact trade-off of a policy against the reference policy."""
        law = response_law(model.eval(), self._ids(), MAX_NEW_TOKENS, EOS)
        policy = torch.tensor([law[response] for response in self.responses], dtype=torch.float64)
        return FiniteTradeoff(self.reference, self.rewards, policy)

    def _ids(self) -> torch.Tensor:
        return torch.tensor([self.tokenizer(PROMPT)["input_ids"]])


def training_world(folder: Path) -> TrainingWorld:
    model, tokenizer = finite_world(vocabulary=5, max_new_tokens=MAX_NEW_TOKENS).model, tiny_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    law = response_law(model, torch.tensor([tokenizer(PROMPT)["input_ids"]]), MAX_NEW_TOKENS, EOS)
    rewards = torch.randn(len(law), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return TrainingWorld(folder, tokenizer, list(law), torch.tensor(list(law.values())).double(), rewards)
