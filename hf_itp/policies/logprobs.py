"""
Log-probabilities of whole responses under a model, by one forward pass over prompt and response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Inputs = dict[str, torch.Tensor]


def padded(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Inputs:
    """
    Return `input_ids`, `attention_mask` and `response_mask` `(B, T)` of prompts with their responses, padded on the
    right.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask, response_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for position, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        input_ids[position, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention_mask[position, : len(row)] = 1
        response_mask[position, len(prompt) : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask}


def batch_logprobs(model: nn.Module, inputs: Inputs, temperature: float = 1.0) -> torch.Tensor:
    """
    Return the log-probability of each response `(B,)` in nats, float32. Keeps gradients.

    Args:
        model (`PreTrainedModel`): A decoder.
        inputs (`dict`): What [`padded`] returns, on the model's device.
        temperature (`float`, *optional*, defaults to 1.0): Divides the logits.
    """
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    rows, places = inputs["response_mask"][:, 1:].nonzero(as_tuple=True)
    tokens = inputs["input_ids"][:, 1:][rows, places]
    logprobs = -nn.functional.cross_entropy(logits[rows, places].float() / temperature, tokens, reduction="none")
    return torch.zeros(len(logits), dtype=torch.float32, device=logprobs.device).index_add(0, rows, logprobs)


@torch.no_grad()
def response_logprobs(
    model: Any,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    temperature: float = 1.0,
    batch_size: int = 16,
) -> torch.Tensor:
    """
    Return the log-probability of each response to one prompt `(n,)` in nats, float64.

    Args:
        model (`PreTrainedModel`): A decoder in eval mode.
        prompt, responses: Token ids; a response holds its end token.
        temperature (`float`, *optional*, defaults to 1.0): Divides the logits, as in sampling.
        batch_size (`int`, *optional*, defaults to 16): Responses in one pass.
    """
    found = []
    # Neighbours in length share a batch, so that little padding is computed.
    order = sorted(range(len(responses)), key=lambda place: len(responses[place]))
    for start in range(0, len(order), batch_size):
        batch = [responses[place] for place in order[start : start + batch_size]]
        inputs = {name: part.to(model.device) for name, part in padded([prompt] * len(batch), batch).items()}
        found.append(batch_logprobs(model, inputs, temperature).double().cpu())
    logprobs = torch.cat(found)
    return torch.empty_like(logprobs).scatter(0, torch.tensor(order), logprobs)
