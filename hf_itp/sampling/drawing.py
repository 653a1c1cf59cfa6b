"""
Draw responses to prompts outside of a decoding call, as calibration and training do for their references.

Knows nothing of rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_itp.policies.chat_template import prompt_ids
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.description import DrawDescription
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.recorded import text_tokenizer
from hf_itp.sampling.sampler import CandidateSampler
from hf_itp.sampling.streams import prompt_keys

__all__ = ["draw_continuations", "draw_described", "draw_responses", "prompt_ids"]


def draw_responses(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    num_candidates: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> list[list[torch.Tensor]]:
    """
    Draw `num_candidates` independent responses of the policy to each prompt, running the prompt once where possible.

    A response depends only on the seed, its prompt (and how many equal ones come before it) and its index, not on what
    else is drawn with it. A setting that neither the caller nor the policy's generation config sets is off, including
    transformers' own `top_k=50`.

    Args:
        policy (`PreTrainedModel`): A decoder that generates text.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer. Chats go through its chat template.
        prompts (`list[str]` or `list[list[dict]]`): Texts or chats.
        num_candidates (`int`): Responses per prompt.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.
        batch_size (`int`, *optional*): Maximum responses decoded at once. Defaults to what fits in free memory.
        progress (`bool`, *optional*): Show a progress bar. By default only on calls longer than 5 seconds.
        chat_template_kwargs (`dict`, *optional*): Arguments of the chat template, e.g. `{"enable_thinking": False}`.
        sampling: Keywords of `generate`: `max_new_tokens`, `temperature`, `top_p`, `generation_config`, ...

    Raises:
        `ArgumentError`: If responses cannot be drawn with a keyword.

    Returns:
        `list[list[torch.LongTensor]]`: For each prompt the tokens of its responses, with the end token and without
        padding.
    """
    description = DrawDescription.of(policy, tokenizer, sampling, chat_template_kwargs=chat_template_kwargs)
    description.check_prompts(prompts)
    return draw_described(
        policy, description, prompts, num_candidates, seed=seed, batch_size=batch_size, progress=progress
    )


def draw_described(
    policy: Any,
    description: DrawDescription,
    prompts: Sequence[str | list[dict]],
    num_candidates: int,
    **options: Any,
) -> list[list[torch.Tensor]]:
    """Draw responses as described; `options` are `seed`, `batch_size` and `progress` of [`draw_responses`]."""
    rows = [description.prompt_ids(prompt) for prompt in prompts]
    return draw_continuations(policy, rows, [num_candidates] * len(rows), description, **options)


def draw_continuations(
    policy: Any,
    token_prompts: Sequence[Sequence[int]],
    num_candidates: Sequence[int],
    description: DrawDescription,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> list[list[torch.Tensor]]:
    """
    Draw responses as described to prompts given as tokens, with a number of responses for each.
    """
    if description.reads_padding and len({len(row) for row in token_prompts}) > 1:
        return _draw_by_length(
            policy, token_prompts, num_candidates, description, seed=seed, batch_size=batch_size, progress=progress
        )
    width = max(len(row) for row in token_prompts)
    input_ids = torch.full((len(token_prompts), width), text_tokenizer(description.tokenizer).pad_token_id or 0)
    attention_mask = torch.zeros_like(input_ids)
    for position, row in enumerate(token_prompts):
        input_ids[position, width - len(row) :] = torch.tensor(row)
        attention_mask[position, width - len(row) :] = 1
    draw = _Draw(num_candidates, seed, batch_size, progress)
    inputs = {"input_ids": input_ids.to(policy.device), "attention_mask": attention_mask.to(policy.device)}
    policy.generate(**inputs, custom_generate=draw, **description.arguments(policy))
    return draw.responses


def _draw_by_length(
    policy: Any, token_prompts: Sequence[Sequence[int]], num_candidates: Sequence[int], *args: Any, **options: Any
) -> list[list[torch.Tensor]]:
    # Prompts of one length at a time need no padding. Equal prompts stay together, so each keeps its own stream.
    drawn: dict[int, list[torch.Tensor]] = {}
    for length in sorted({len(row) for row in token_prompts}):
        places = [place for place, row in enumerate(token_prompts) if len(row) == length]
        rows, counts = [token_prompts[place] for place in places], [num_candidates[place] for place in places]
        drawn |= dict(zip(places, draw_continuations(policy, rows, counts, *args, **options), strict=True))
    return [drawn[place] for place in range(len(token_prompts))]


class _Draw:
    """Decoding method that keeps what it draws and returns its input."""

    def __init__(self, num_candidates: Sequence[int], seed: int, batch_size: int | None, progress: bool | None):
        self._num_candidates, self._seed, self._batch_size = num_candidates, seed, batch_size
        self._progress = progress
        self.responses: list[list[torch.Tensor]] = []

    def __call__(self, model: Any, input_ids: torch.Tensor, **prepared: Any) -> torch.Tensor:
        keys = prompt_keys(self._seed, unpadded(input_ids, prepared.get("attention_mask")))
        call = DecodingCall.of(model, input_ids, **prepared)
        sampler = CandidateSampler(
            replace(call, prompt_keys=keys, batch_size=self._batch_size, progress=self._progress)
        )
        drawn = iter(sampler.draw([(row, i) for row, count in enumerate(self._num_candidates) for i in range(count)]))
        self.responses = [[next(drawn) for _ in range(count)] for count in self._num_candidates]
        return input_ids
