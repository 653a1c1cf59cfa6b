"""
Ways to score many responses to one prompt with a reward model.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.contestants import Contestant
from benchmarks.operations import operations_needed
from benchmarks.prompts import Chat, chats, passages
from benchmarks.workloads import Workload
from hf_itp import Policy
from hf_itp.rewards import RewardModel


def padded_rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Chat], responses: list[str]
) -> torch.Tensor:
    """Score as a user would: all pairs in one batch, padded to the longest, in one forward pass."""
    if tokenizer.chat_template:
        whole = [
            [*chat, {"role": "assistant", "content": response}]
            for chat, response in zip(prompts, responses, strict=True)
        ]
        batch = tokenizer.apply_chat_template(whole, padding=True, return_dict=True, return_tensors="pt")
    else:
        tokenizer.truncation_side = "left"
        questions = [chat[-1]["content"] for chat in prompts]
        batch = tokenizer(questions, responses, padding=True, truncation="only_first", return_tensors="pt")
    with torch.no_grad():
        return model(**batch.to(model.device)).logits[:, 0].float()


class Scorer(Contestant):
    """The policy's body with a random head, like a causal reward model."""

    def __init__(self, workload: Workload, options: dict[str, Any]):
        super().__init__(workload, options)
        policy = Policy.from_pretrained(options["model"], device="cpu", dtype=options["dtype"])
        self.tokenizer = policy.tokenizer
        self.model = AutoModelForSequenceClassification.from_pretrained(
            policy.model.name_or_path, num_labels=1, dtype=options["dtype"]
        )
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        head = self.model.score.weight
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
        self.model = self.model.to(self.device).eval()
        self.reward = RewardModel(self.model, self.tokenizer)
        self.chat = chats(self.tokenizer, workload.prompt_lengths())[0]
        self.chat_tokens = len(self.tokenizer.apply_chat_template(self.chat, return_dict=True)["input_ids"])

    def warm_up(self) -> None:
        self.score(passages(self.tokenizer, [3, 4]))

    def run(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        limit, count = self.workload.max_new_tokens, self.workload.candidates
        # About as long as responses up to the limit.
        lengths = torch.randint(3 * limit // 4, 5 * limit // 4 + 1, (count,), generator=generator).tolist()
        responses = passages(self.tokenizer, lengths)
        result: dict[str, Any] = {}
        with self.timed(result):
            rewards = self.score(responses)
        operations = operations_needed(self.model, self.chat_tokens, lengths, with_head=False)
        return {**result, "tokens": sum(lengths), "operations": operations, "rewards": rewards.tolist()}

    @abstractmethod
    def score(self, responses: list[str]) -> torch.Tensor:
        """Return the rewards of responses to the one prompt."""


class OurScorer(Scorer):
    """[`RewardModel`]."""

    def score(self, responses: list[str]) -> torch.Tensor:
        return self.reward([self.chat] * len(responses), responses)


class PaddedForward(Scorer):
    """One padded forward pass."""

    def score(self, responses: list[str]) -> torch.Tensor:
        return padded_rewards(self.model, self.tokenizer, [self.chat] * len(responses), responses)


SCORERS = {"ours": OurScorer, "padded forward": PaddedForward}
