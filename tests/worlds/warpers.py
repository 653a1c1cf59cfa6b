"""
Temperature, top-k, top-p and min-p written from their definitions, one row of float64 logits at a time.

Slow on purpose: what the package computes at once for a whole batch is compared with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Warp = Callable[[torch.Tensor], torch.Tensor]
"""Maps logits `(V,)` to warped logits `(V,)`, both float64; minus infinity is a token that cannot be drawn."""


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


def temperature_warp(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return _tensor([value / temperature for value in logits.tolist()])


def top_k_warp(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Keep what is at least the k-th largest logit: more than `k` tokens if that one is tied."""
    values = logits.tolist()
    threshold = sorted(values, reverse=True)[min(top_k, len(values)) - 1]
    return _tensor([value if value >= threshold else -math.inf for value in values])


def top_p_warp(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """
    Remove tokens, the least probable first, while what has been removed has probability at most `1 - top_p`.

    Among equal logits the lower id goes first. The most probable token stays whatever `top_p` is.
    """
    values = logits.tolist()
    probabilities = softmax(values)
    ascending = sorted(range(len(values)), key=lambda index: (values[index], index))
    removed, cumulative = set(), 0.0
    for index in ascending[:-1]:
        cumulative += probabilities[index]
        if cumulative <= 1 - top_p:
            removed.add(index)
    return _tensor([-math.inf if index in removed else value for index, value in enumerate(values)])


def min_p_warp(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep what is at least `min_p` times as probable as the most probable token."""
    values = logits.tolist()
    probabilities = softmax(values)
    threshold = min_p * max(probabilities)
    return _tensor(
        [
            value if probability >= threshold else -math.inf
            for value, probability in zip(values, probabilities, strict=True)
        ]
    )


def warper(
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Warp:
    """Apply all that is set in the order of `generate`: temperature, top-k, top-p, min-p."""

    def warp(logits: torch.Tensor) -> torch.Tensor:
        if temperature is not None:
            logits = temperature_warp(logits, temperature)
        if top_k:
            logits = top_k_warp(logits, top_k)
        if top_p is not None and top_p < 1.0:
            logits = top_p_warp(logits, top_p)
        if min_p is not None:
            logits = min_p_warp(logits, min_p)
        return logits

    return warp


def _tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
