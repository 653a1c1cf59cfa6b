"""
Work done in batches of similar length, smaller ones when memory runs out.

Knows nothing of models: the work is a function of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_itp.rewards.encoding import TokenSequence

BatchSize = int | Literal["auto"]

_TOKENS_PER_AUTO_BATCH = 16_384
"""Padded tokens per forward under `"auto"`: 32 conversations of 512 tokens keep an accelerator busy."""


def map_batches(
    function: Callable[[Sequence[TokenSequence]], torch.Tensor],
    sequences: Sequence[TokenSequence],
    batch_size: BatchSize = "auto",
    progress: bool = False,
) -> torch.Tensor:
    """
    `function` of every sequence, in order, computed over batches of at most `batch_size` sequences.

    Longest first: a batch wastes little on padding, and memory runs out at the start if at all. Then the batch is
    halved and the rest of the work goes on at the smaller size; a single sequence that does not fit is an error.

    Args:
        function (`Callable`): From a batch of `b` sequences to a tensor of shape `(b,)`.
        sequences (`Sequence[TokenSequence]`): At least one.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): `"auto"` bounds the padded tokens instead.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar, unless transformers' are disabled.

    Returns:
        `torch.Tensor` of shape `(len(sequences),)`.
    """
    order = sorted(range(len(sequences)), key=lambda position: -len(sequences[position].ids))
    results = torch.empty(len(sequences))
    shrink, done = 1, 0
    with tqdm(
        total=len(order), desc="Scoring", unit="response", disable=not (progress and logging.is_progress_bar_enabled())
    ) as bar:
        while done < len(order):
            size = _size(batch_size, len(sequences[order[done]].ids), shrink)
            batch = order[done : done + size]
            try:
                results[batch] = function([sequences[position] for position in batch])
            except RuntimeError as error:
                if len(batch) == 1 or not should_reduce_batch_size(error):
                    raise
                out_of_memory = True
            else:
                out_of_memory = False
            # Outside `except`: there the traceback still holds the tensors that are to be freed.
            if out_of_memory:
                shrink *= 2
                clear_device_cache(garbage_collection=True)
                continue
            done += len(batch)
            bar.update(len(batch))
    return results


def _size(batch_size: BatchSize, length: int, shrink: int) -> int:
    size = max(1, _TOKENS_PER_AUTO_BATCH // length) if batch_size == "auto" else batch_size
    return max(1, size // shrink)
