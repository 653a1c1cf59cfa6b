"""
Temperature, top-k, top-p and min-p on logits, with the meaning and the order transformers gives them.
"""

from __future__ import annotations

import math

import torch

_NUCLEUS_SIZES = (64, 512, 4096)


def warp_logits(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    r"""
    Return the logits of the sampling distribution: divided by the temperature, then `-inf` for removed tokens.

    In order: *top-k* keeps the `top_k` largest (and their ties), *top-p* the smallest set of most probable tokens with
    mass of at least `top_p`, *min-p* all of at least `min_p` times the largest probability. At least one token stays.

    Args:
        logits (`torch.FloatTensor` of shape `(..., V)`): Raw logits. Not changed.
        temperature (`float`, *optional*, defaults to 1.0): Positive.
        top_k (`int`, *optional*, defaults to 0): 0 keeps all.
        top_p (`float`, *optional*, defaults to 1.0): In `[0, 1]`; 1 keeps all.
        min_p (`float`, *optional*, defaults to 0.0): In `[0, 1]`; 0 keeps all.

    Returns:
        `torch.FloatTensor` of shape `(..., V)`.

    Examples:

    ```python
    >>> import torch
    >>> warp_logits(torch.tensor([0.5, 0.3, 0.2]).log(), top_p=0.6).softmax(-1)
    tensor([0.6250, 0.3750, 0.0000])

    ```
    """
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p < 1.0:
        logits = logits.masked_fill(_outside_nucleus(logits.softmax(dim=-1), top_p), -torch.inf)
    if min_p > 0.0:
        # p_i < min_p * p_max, in logits.
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), -torch.inf)
    return logits


def _outside_nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return a mask of the tokens outside the smallest set of most probable ones with mass of at least `top_p`."""
    vocabulary = probabilities.shape[-1]
    rows = probabilities.reshape(-1, vocabulary)
    removed = torch.ones_like(rows, dtype=torch.bool)
    waiting = torch.arange(len(rows), device=rows.device)
    # Most nuclei are small, and topk of a few is many times cheaper than sorting the vocabulary.
    for count in (*(count for count in _NUCLEUS_SIZES if count < vocabulary), vocabulary):
        largest, tokens = rows[waiting].topk(count, dim=-1)
        before = largest.double().cumsum(dim=-1) - largest
        outside = before >= top_p
        outside[:, 0] = False
        removed[waiting] = removed[waiting].scatter(-1, tokens, outside)
        waiting = waiting[~outside[:, -1]]
        if len(waiting) == 0:
            break
    return removed.view_as(probabilities)
