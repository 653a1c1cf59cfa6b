"""Calls of `generate` to make in one process and, split, in two."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hf_itp import StrategyOutput
from tests.tiny import VISION_LANGUAGE, PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer, vision_batch


class Abstains(PromptBoundReward):
    """Reward that has none for some responses, and logs."""

    def __call__(
        self, prompts: Any, completions: Any, log_metric: Any = None, log_extra: Any = None, **kw: Any
    ) -> Any:
        rewards = super().__call__(prompts, completions)
        log_metric("mine", 2.0)
        log_extra("doubled", [2 * reward for reward in rewards])
        return [None if (reward * 997) % 1 < 0.4 else reward for reward in rewards]


class FavoursByPlace(LogitsProcessor):
    """Processor that makes word `10 + i` more likely in row `i` of a batch, so that a row's place decides its text."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(scores))
        scores = scores.clone()
        scores[rows, 10 + rows] += 2.0
        return scores


# Prompt lengths, and arguments that differ from those of `generated`.
CASES: dict[str, dict[str, Any]] = {
    "33 candidates": {"lengths": [7], "num_candidates": 33},
    "three prompts": {"lengths": [7, 5, 9], "num_return_sequences": 2, "strategy": "pessimism", "beta": 0.15},
    "the same prompt twice": {"lengths": [6, 6], "same": True, "strategy": "top_quantile", "multiplier": 2.0},
    "one candidate": {"lengths": [7], "num_candidates": 1},
    "batches of three": {"lengths": [7, 5], "num_candidates": 7, "batch_size": 3},
    "fresh proposals": {"lengths": [7, 5, 9], "strategy": "pessimism", "beta": 0.1, "pool": "fresh"},
    "processor per place": {"lengths": [7, 5, 9], "logits_processor": LogitsProcessorList([FavoursByPlace()])},
    "repetition penalty": {"lengths": [7, 5, 9], "repetition_penalty": 1.3},
    "encoder-decoder": {"architecture": "t5", "lengths": [7, 5, 9]},
    "pictures": {"architecture": "qwen2_vl", "lengths": [9, 12, 8]},
}


ABSTAINED = ("three prompts", "batches of three", "fresh proposals")
"""Cases with a reward that abstains."""


def model_for(case: str) -> PreTrainedModel:
    return tiny_model(CASES[case].get("architecture", "llama"))


def generated(
    model: PreTrainedModel, case: str, shard: str | None, reward: Any = None, **overrides: Any
) -> StrategyOutput:
    arguments = copy.deepcopy(CASES[case])
    architecture, lengths = arguments.pop("architecture", "llama"), arguments.pop("lengths")
    make_batch = vision_batch if architecture in VISION_LANGUAGE else lambda _, lengths: left_padded_batch(lengths)
    batch = make_batch(architecture, lengths)
    if arguments.pop("same", False):
        batch["input_ids"][1:] = batch["input_ids"][0]
    defaults = {
        "strategy": "best_of_n",
        "reward_model": reward or PromptBoundReward(),
        "prompts": [f"question {row}" for row in range(len(lengths))],
        "num_candidates": 5,
        "seed": 3,
        "max_new_tokens": 10,
        "tokenizer": tiny_tokenizer(),
        "return_dict_in_generate": True,
    }
    arguments = {name: value for name, value in (defaults | arguments | overrides).items() if value is not None}
    if "input_ids" in arguments:
        batch = {"input_ids": arguments.pop("input_ids")}
    return model.generate(**batch, shard=shard, **arguments)


def plain(output: StrategyOutput) -> dict[str, Any]:
    """Return what two runs of a call must have in common, in a form that can be saved in a file."""
    names = (
        "sequences", "rewards", "candidates", "candidate_rewards", "probabilities", "selected", "finish_reasons",
        "texts", "prompt_ids",
    )  # fmt: skip
    found = ("num_tokens", "no_reward", "reward_log")
    return {name: getattr(output, name) for name in names} | {
        name: output.diagnostics[name] for name in found if name in output.diagnostics
    }


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equality to the last bit, list by list and tensor by tensor."""
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert ours == theirs
