"""
Operations that a task needs, and operations per second of this machine: together, the share of it in use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

# Other work on the machine can halve the speed of a second, so the best of several stretches counts.
_STRETCHES, _STRETCH_SECONDS = 5, 0.3


def operations_needed(model: Any, prompt_tokens: int, response_tokens: Sequence[int], with_head: bool = True) -> int:
    """
    Count multiplications and additions for one prompt, run once, and all its responses.

    Two per weight of the body and token, two per weight of the output head and token drawn, and in every layer four
    per channel of the queries and token attended to.
    """
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight if with_head else None
    tied = head is not None and head is model.get_input_embeddings().weight
    head_size = 0 if head is None else head.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - embeddings - (0 if tied else head_size)
    tokens = sum(response_tokens)
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or _head_size(config))
    attended = prompt_tokens * (prompt_tokens + 1) // 2
    attended += sum(length * prompt_tokens + length * (length + 1) // 2 for length in response_tokens)
    attention = 4 * config.num_hidden_layers * width * attended
    return 2 * body * (prompt_tokens + tokens) + 2 * head_size * tokens + attention


def bytes_per_token(model: Any) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or _head_size(config)
    return 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of `torch.mm` on large square matrices, in the best of several stretches."""
    size = 2048 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    out = torch.mm(left, right)
    rates = []
    for _ in range(_STRETCHES):
        products, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _STRETCH_SECONDS:
            torch.mm(left, right, out=out)
            products += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        rates.append(products * 2 * size**3 / seconds)
    return max(rates)


def _head_size(config: Any) -> int:
    return config.hidden_size // config.num_attention_heads
