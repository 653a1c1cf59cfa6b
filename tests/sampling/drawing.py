"""
Draw candidates from the sampler, through the hook of `generate`, without rewards or a strategy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.streams import prompt_keys

Pools = list[list[list[int]]]


def draw(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    num_candidates: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    **generate_arguments: Any,
) -> tuple[Pools, str]:
    """Return the candidates of every prompt, as lists of token ids, and the path the sampler took."""
    given = batch["input_ids"], batch.get("attention_mask")
    paths = []

    def decode(model, input_ids, **prepared):
        call = DecodingCall.of(model, input_ids, **prepared)
        sampler = CandidateSampler(
            replace(call, prompt_keys=prompt_keys(seed, unpadded(*given)), batch_size=batch_size)
        )
        paths.append(sampler.path)
        pairs = [(row, index) for row in range(len(input_ids)) for index in range(num_candidates)]
        drawn = [response.tolist() for response in sampler.draw(pairs)]
        return [drawn[row * num_candidates :][:num_candidates] for row in range(len(input_ids))]

    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, **generate_arguments}
    if not arguments["do_sample"]:
        del arguments["top_k"]
    return model.generate(**batch, custom_generate=decode, **arguments), paths[0]


def prepared(model: PreTrainedModel, batch: dict[str, torch.Tensor], **settings: Any) -> DecodingCall:
    """Return what `generate` hands to a decoding method."""
    caught = []

    def decode(model, input_ids, **prepared):
        caught.append(DecodingCall.of(model, input_ids, **prepared))
        return input_ids

    model.generate(**batch, custom_generate=decode, max_new_tokens=8, **settings)
    return caught[0]


def rows_of(batch: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """Return the batch with only these rows, in this order, and no more padding than they need."""
    kept = {name: values[rows] for name, values in batch.items()}
    start = int(kept["attention_mask"].argmax(dim=-1).min())
    return {name: values[:, start:] for name, values in kept.items()}
