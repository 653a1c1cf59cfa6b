"""
Ways to draw N candidates per prompt, score them and select the best.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.contestants import Contestant, NotPossible
from benchmarks.memory import free_bytes, peak_bytes
from benchmarks.operations import bytes_per_token, operations_needed
from benchmarks.prompts import chats
from benchmarks.scoring import padded_rewards
from benchmarks.workloads import Workload
from hf_itp import Policy
from hf_itp.rewards import RewardFunction, RewardModel

_PAGE = 256  # tokens to a page of `generate_batch`'s cache, its default
_WARM_UP = {"max_new_tokens": 3, "num": 2}


class Sampler(Contestant):
    """Base of all: load models and prompts, and count tokens."""

    def __init__(self, workload: Workload, options: dict[str, Any]):
        super().__init__(workload, options)
        self.policy = Policy.from_pretrained(options["model"], device=options["device"], dtype=options["dtype"])
        self.reward = RewardModel.from_pretrained(options["reward_model"], device=self.device)
        self.chats = chats(self.policy.tokenizer, workload.prompt_lengths())
        self.prompts = [
            self.policy.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
            for chat in self.chats
        ]
        end = self.policy.model.generation_config.eos_token_id
        self.end_tokens = set(end if isinstance(end, list) else [end])
        needed, free = self.bytes_needed(), free_bytes(self.device)
        if needed > free:
            raise NotPossible(f"needs about {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free")

    def warm_up(self) -> None:
        self.draw(seed=0, **_WARM_UP, result={})

    def run(self, seed: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        with self.timed(result):
            num, limit = self.workload.candidates, self.workload.max_new_tokens
            responses = self.draw(seed=seed, num=num, max_new_tokens=limit, result=result)
        lengths = [self.num_useful(response) for response in responses]
        if len(lengths) != num * len(self.prompts):
            raise RuntimeError(f"{len(lengths)} responses came back instead of {num * len(self.prompts)}")
        of_prompt = [lengths[index * num : (index + 1) * num] for index in range(len(self.prompts))]
        operations = sum(
            operations_needed(self.policy.model, len(prompt), mine)
            for prompt, mine in zip(self.prompts, of_prompt, strict=True)
        )
        return {**result, "tokens": sum(lengths), "operations": operations}

    @abstractmethod
    def draw(self, seed: int, num: int, max_new_tokens: int, result: dict[str, Any]) -> list[list[int]]:
        """Return all responses by prompt, once the best is known, and add the stages to `result`."""

    def bytes_needed(self) -> int:
        """Return a rough upper bound of the memory of a pass, beyond what is loaded."""
        return 0

    def num_useful(self, response: list[int]) -> int:
        """Count the tokens up to and including the first end token."""
        ends = (place + 1 for place, token in enumerate(response) if token in self.end_tokens)
        return next(ends, len(response))

    def bytes_of_full_cache(self) -> int:
        """Return the bytes of keys and values if every candidate has a copy of its prompt's."""
        longest = max(map(len, self.prompts)) + self.workload.max_new_tokens
        rows = self.workload.candidates * len(self.prompts)
        return rows * longest * bytes_per_token(self.policy.model)


class Ours(Sampler):
    """`model.generate(strategy="best_of_n", reward_model=...)`."""

    def __init__(self, workload: Workload, options: dict[str, Any]):
        super().__init__(workload, options)
        self._watched = _WatchedReward(self)

    def draw(self, seed: int, num: int, max_new_tokens: int, result: dict[str, Any]) -> list[list[int]]:
        output = self.policy.generate(
            self.chats,
            strategy="best_of_n",
            reward_model=self._watched,
            num_candidates=num,
            seed=seed,
            temperature=1.0,
            max_new_tokens=max_new_tokens,
            progress=False,
        )
        assert output.diagnostics is not None and output.candidates is not None
        seconds = output.diagnostics["seconds"]
        result["sampling_seconds"] = seconds["prefill"] + seconds["sampling"]
        result["sampling_peak_bytes"] = self._watched.peak_before
        result["path"] = output.diagnostics["path"]
        return [response.tolist() for pool in output.candidates for response in pool]


class _WatchedReward(RewardFunction):
    """The reward model, which records the peak memory before it scores: that of sampling."""

    def __init__(self, contestant: Sampler):
        self.name = contestant.reward.name
        self._contestant, self.peak_before = contestant, 0

    def score(self, *arguments: Any) -> torch.Tensor:
        self.peak_before = peak_bytes(self._contestant.device)
        return torch.as_tensor(self._contestant.reward.score(*arguments))


class Generate(Sampler):
    """`generate(num_return_sequences=N)`, then one padded forward pass of the reward model."""

    def draw(self, seed: int, num: int, max_new_tokens: int, result: dict[str, Any]) -> list[list[int]]:
        torch.manual_seed(seed)
        with self.timed(result, "sampling"):
            responses = self.sample(seed, num, max_new_tokens)
        texts = self.policy.tokenizer.batch_decode(responses, skip_special_tokens=True)
        of_each = [chat for chat in self.chats for _ in range(num)]
        rewards = padded_rewards(self.reward.model, self.reward.tokenizer, of_each, texts)
        rewards.view(-1, num).argmax(-1).tolist()
        return responses

    def sample(self, seed: int, num: int, max_new_tokens: int) -> list[list[int]]:
        inputs = self.policy.tokenizer.pad({"input_ids": self.prompts}, return_tensors="pt").to(self.device)
        output = self.policy.model.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            num_return_sequences=num,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.policy.tokenizer.pad_token_id,
        )
        return output[:, inputs["input_ids"].shape[1] :].tolist()

    def bytes_needed(self) -> int:
        # Every step copies a layer's cache to append to it.
        return int(self.bytes_of_full_cache() * 1.2)


class GenerateBatch(Generate):
    """`generate_batch(num_return_sequences=N)`, transformers' paged continuous batching, then the same forward."""

    def sample(self, seed: int, num: int, max_new_tokens: int) -> list[list[int]]:
        model, tokenizer = self.policy.model, self.policy.tokenizer
        config = GenerationConfig(
            do_sample=True,
            top_k=0,
            temperature=1.0,
            num_return_sequences=num,
            max_new_tokens=max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        results = model.generate_batch(self.prompts, config, ContinuousBatchingConfig(seed=seed, **self._sizes()))
        return [result.generated_tokens for result in results.values()]

    def bytes_needed(self) -> int:
        return self._sizes().get("num_blocks", 0) * _PAGE * bytes_per_token(self.policy.model)

    def _sizes(self) -> dict[str, int]:
        if self.device.type == "cuda":
            return {}  # it chooses by the free memory
        # Room for all candidates at once, the best case. By default it takes most of the memory.
        each = -(-self.workload.max_new_tokens // _PAGE) + 1
        prompts = sum(-(-len(prompt) // _PAGE) + 1 for prompt in self.prompts)
        rows = self.workload.candidates * len(self.prompts)
        return {"num_blocks": prompts + rows * each, "max_batch_tokens": max(512, rows)}


SAMPLERS = {"ours": Ours, "generate": Generate, "generate_batch": GenerateBatch}
