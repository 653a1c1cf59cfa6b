"""
Responses to prompts outside of a decoding call: what calibration and training draw their references with.

Knows nothing of rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from hf_itp.errors import ArgumentError
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.sampler import CandidateSampler
from hf_itp.sampling.streams import prompt_keys


def draw_responses(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    num_candidates: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **sampling: Any,
) -> list[list[torch.Tensor]]:
    """
    `num_candidates` independent responses of the policy to each prompt, the prompt paid for once.

    A response is a function of the seed, its prompt (and how many equal ones stand before it) and its index, whatever
    else is drawn with it. What neither the caller nor the policy's generation config sets is off, transformers' own
    `top_k=50` included.

    Args:
        policy (`PreTrainedModel`): A decoder that generates text.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer; chats go through its chat template.
        prompts (`list[str]` or `list[list[dict]]`): Texts or chats.
        num_candidates (`int`): Responses per prompt.
        seed (`int`, *optional*, defaults to 0): Names the draw.
        batch_size (`int`, *optional*): Most responses decoded at once; by free memory if absent.
        progress (`bool`, *optional*): A progress bar always or never; if absent, on long calls.
        sampling: Keywords of `generate`: `max_new_tokens`, `temperature`, `top_p`, ...

    Returns:
        `list[list[torch.LongTensor]]`: Per prompt its responses' tokens, the end token included, without padding.
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    return draw_continuations(
        policy,
        rows,
        [num_candidates] * len(rows),
        pad_token_id=tokenizer.pad_token_id,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        **sampling_settings(policy, sampling),
    )


def draw_continuations(
    policy: Any,
    token_prompts: Sequence[Sequence[int]],
    num_candidates: Sequence[int],
    *,
    pad_token_id: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> list[list[torch.Tensor]]:
    """
    [`draw_responses`] for prompts that are tokens already, with a number of responses for each.

    Args:
        settings: Keywords of `generate`, taken as they are.
    """
    width = max(len(row) for row in token_prompts)
    input_ids = torch.full((len(token_prompts), width), pad_token_id or 0)
    attention_mask = torch.zeros_like(input_ids)
    for position, row in enumerate(token_prompts):
        input_ids[position, width - len(row) :] = torch.tensor(row)
        attention_mask[position, width - len(row) :] = 1
    draw = _Draw(num_candidates, seed, batch_size, progress)
    inputs = {"input_ids": input_ids.to(policy.device), "attention_mask": attention_mask.to(policy.device)}
    policy.generate(**inputs, custom_generate=draw, **settings)
    return draw.responses


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict]) -> list[int]:
    """
    The tokens of one prompt: a chat by the tokenizer's template with the assistant's turn opened, a text as it is.

    Raises:
        `ArgumentError`: If the tokenizer has no chat template, or nothing is left of the prompt.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
    elif tokenizer.chat_template is None:
        raise ArgumentError(
            f"`prompts` has to be texts, since the tokenizer has no chat template, but is {prompt!r:.80}. Render the "
            "chats or set `tokenizer.chat_template`."
        )
    else:
        encoded: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        ids = list(encoded["input_ids"])
    if not ids:
        raise ArgumentError(f"`prompts` has to hold at least one token each, but one is {prompt!r}. Leave it out.")
    return ids


def sampling_settings(policy: PreTrainedModel, sampling: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `generate` that sample from the policy itself: what nobody set is off."""
    own = policy.generation_config.to_dict()
    settings = {"do_sample": True, **sampling}
    if settings.get("top_k") is None and own.get("top_k") is None:
        settings["top_k"] = 0
    return settings


class _Draw:
    """A decoding method that keeps what it draws, and returns its input."""

    def __init__(self, num_candidates: Sequence[int], seed: int, batch_size: int | None, progress: bool | None):
        self._num_candidates, self._seed, self._batch_size = num_candidates, seed, batch_size
        self._progress = progress
        self.responses: list[list[torch.Tensor]] = []

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        tokens = unpadded(input_ids, model_kwargs.get("attention_mask"))
        sampler = CandidateSampler(
            model=model,
            input_ids=input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            model_kwargs=model_kwargs,
            prompt_keys=prompt_keys(self._seed, tokens),
            batch_size=self._batch_size,
            progress=self._progress,
        )
        drawn = iter(sampler.draw([(row, i) for row, count in enumerate(self._num_candidates) for i in range(count)]))
        self.responses = [[next(drawn) for _ in range(count)] for count in self._num_candidates]
        return input_ids
