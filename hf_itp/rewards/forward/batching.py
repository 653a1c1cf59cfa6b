"""
Work done in batches of similar length, smaller ones when memory runs out.

Knows nothing of models: the work is a function of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_itp.rewards.options import BatchSize
from hf_itp.rewards.text.encoding import TokenSequence


def scoring_bar(count: int, progress: bool) -> tqdm:
    """A bar over `count` responses, shown if `progress`, unless transformers' are disabled."""
    shown = progress and logging.is_progress_bar_enabled()
    return tqdm(total=count, desc="Scoring", unit="response", disable=not shown)


def each_once(
    function: Callable[[Sequence[TokenSequence]], torch.Tensor], sequences: Sequence[TokenSequence]
) -> torch.Tensor:
    """`function` of all sequences, in order, asked for the distinct ones alone: candidates of one prompt repeat."""
    place = {sequence: position for position, sequence in enumerate(dict.fromkeys(sequences))}
    return function(list(place))[[place[sequence] for sequence in sequences]]


def map_batches(
    function: Callable[[Sequence[TokenSequence]], torch.Tensor],
    sequences: Sequence[TokenSequence],
    batch_size: BatchSize = "auto",
    bar: tqdm | None = None,
    max_tokens: int = 16_384,
    max_padding: int | None = None,
) -> torch.Tensor:
    """
    `function` of every sequence, in order, computed over batches of at most `batch_size` sequences.

    Longest first: a batch wastes little on padding, and memory runs out at the start if at all. Then the batch is
    halved and the rest of the work goes on at the smaller size; a single sequence that does not fit is an error.

    Args:
        function (`Callable`): From a batch of `b` sequences to a tensor of shape `(b,)`.
        sequences (`Sequence[TokenSequence]`): At least one.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): `"auto"` goes by their lengths.
        bar (`tqdm`, *optional*): Moved on by each batch.
        max_tokens (`int`, *optional*, defaults to 16384): Tokens of a batch under `"auto"`, padding included.
        max_padding (`int`, *optional*): Padding tokens of a batch under `"auto"`; no limit without it.

    Returns:
        `torch.Tensor` of shape `(len(sequences),)`, float32.
    """
    order = sorted(range(len(sequences)), key=lambda position: -len(sequences[position].ids))
    lengths = [len(sequences[position].ids) for position in order]
    results = torch.empty(len(sequences), dtype=torch.float32)
    shrink, done = 1, 0
    while done < len(order):
        batch = order[done : done + _size(batch_size, lengths, done, shrink, max_tokens, max_padding)]
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
        if bar is not None:
            bar.update(len(batch))
    return results


def _size(
    batch_size: BatchSize, lengths: list[int], done: int, shrink: int, max_tokens: int, max_padding: int | None
) -> int:
    """How many sequences the next batch has; `lengths`, the longest first, are looked at as far as it may reach."""
    if batch_size != "auto":
        return max(1, batch_size // shrink)
    longest = lengths[done]
    size = max(1, max_tokens // longest // shrink)
    if max_padding is None:
        return size
    padding = itertools.accumulate(longest - length for length in lengths[done : done + size])
    return sum(1 for tokens in padding if tokens <= max_padding)
