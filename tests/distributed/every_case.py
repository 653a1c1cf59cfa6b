"""
Run every case under both ways to split, and every way to fail, into one file per process.

    accelerate launch --multi_gpu --num_processes 2 -m tests.distributed.every_case FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_itp import RewardModel
from tests.distributed.cases import CASES, generated, model_for, plain
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import VOCABULARY_SIZE, PromptBoundReward, tiny_model, tiny_tokenizer

SHARDS = ("candidates", "prompts")


class FailsAtThirdToken(StoppingCriteria):
    """Criterion that fails in one process, while the other draws to the end."""

    def __init__(self, fails: bool):
        self.fails, self.calls = fails, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        if self.fails and self.calls == 3:
            raise ZeroDivisionError("in a criterion of the user's")
        return torch.zeros(len(input_ids), dtype=torch.bool)


def fails_in_process(failing: int, rank: int) -> Any:
    return lambda prompts, completions, **kwargs: [float("nan" if rank == failing else 1)] * len(completions)


def splits() -> dict[str, Any]:
    results = {}
    for case in CASES:
        for shard in SHARDS:
            reward = PromptBoundReward()
            results[case, shard] = plain(generated(model_for(case), case, shard, reward))
            results[case, shard, "scored here"] = sum(len(completions) for _, completions in reward.calls)
    return results


def reward_models() -> dict[str, Any]:
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    return {shard: plain(generated(tiny_model("llama"), "three prompts", shard, reward, beta=0.5)) for shard in SHARDS}


def unwrapped(accelerator: Accelerator) -> dict[str, Any]:
    wrapped = accelerator.prepare(tiny_model("llama"))
    policy = accelerator.unwrap_model(wrapped)
    return {"type": type(wrapped).__name__, "output": plain(generated(policy, "33 candidates", "candidates"))}


def without_a_seed(rank: int) -> dict[str, Any]:
    torch.manual_seed(100 + rank)
    output = generated(tiny_model("llama"), "three prompts", "candidates", seed=None)
    return {"output": plain(output), "next random number": torch.rand(())}


def sharded_weights() -> dict[str, Any]:
    results = {}
    for case in ("33 candidates", "one candidate", "three prompts", "batches of three", "fresh proposals"):
        for shard in SHARDS:
            model = tiny_model("llama")
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
            results[case, shard] = plain(generated(model, case, shard))
    return results


def failures(rank: int) -> dict[str, Any]:
    def error_of(**overrides: Any) -> dict[str, Any]:
        try:
            generated(tiny_model("llama"), "33 candidates", "candidates", **overrides)
        except Exception as error:
            return {"type": type(error).__name__, "message": str(error)}
        return {}

    criterion = FailsAtThirdToken(fails=rank == 1)
    return {
        "reward": error_of(reward=fails_in_process(1, rank)),
        "reward of process 0": error_of(reward=fails_in_process(0, rank)),
        "criterion": error_of(stopping_criteria=StoppingCriteriaList([criterion]), eos_token_id=VOCABULARY_SIZE),
        "tokens drawn beside the criterion's error": criterion.calls,
        "other prompts": error_of(input_ids=torch.tensor([[1, 5 + rank]])),
        "other count": error_of(num_candidates=4 + rank),
        "after all that": plain(generated(tiny_model("llama"), "33 candidates", "candidates")),
    }


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    results = {
        "splits": splits(),
        "reward models": reward_models(),
        "unwrapped": unwrapped(accelerator),
        "without a seed": without_a_seed(rank),
        "sharded weights": sharded_weights(),
        "failures": failures(rank),
    }
    torch.save(results, folder / f"process{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
