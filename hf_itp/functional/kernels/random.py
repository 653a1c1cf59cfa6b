"""
Random numbers as a function of where they are used, (key of the row, step, index), without a hidden state.

A row's stream is therefore the same by itself or in a batch, in any order, on any device, and no global state changes.
Knows nothing of probabilities or tokens.
"""

from __future__ import annotations

import torch


def signed64(value: int) -> int:
    """Return the int64 with the same lowest 64 bits: torch accepts no larger Python integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


# Weyl increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014; constants "Mix13" by Stafford).
_GAMMA = signed64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = signed64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = signed64(0x94D049BB133111EB)


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    # torch shifts int64 arithmetically: mask the sign bits that come in from the left.
    return (bits >> count) & ((1 << (64 - count)) - 1)


def mix(bits: torch.Tensor) -> torch.Tensor:
    """Apply SplitMix64's finalizer: a bijection of int64 in which each input bit flips half of the output bits."""
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def uniform(keys: torch.Tensor, step: int | torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    r"""
    Return uniform numbers in the open interval (0, 1), one per pair of a key and an index.

    Args:
        keys (`torch.LongTensor`): 64-bit keys, one stream each; broadcast against `index`.
        step (`int` or `torch.LongTensor`): Position in the stream, one for all keys or one for each.
        index (`torch.LongTensor`): Position within the step.

    Returns:
        `torch.DoubleTensor` of the broadcast shape: multiples of 2^-53 shifted by 2^-54, so never 0 and never 1.

    Examples:

    ```python
    >>> import torch
    >>> uniform(torch.tensor([7, 7, 8]), 0, torch.tensor([0, 1, 0]))
    tensor([0.7358, 0.9287, 0.2618], dtype=torch.float64)

    ```
    """
    skip = signed64((step + 1) * _GAMMA) if isinstance(step, int) else (step + 1) * _GAMMA  # tensors wrap around
    at_step = mix(mix(keys) + skip)
    bits = mix(at_step + (index + 1) * _GAMMA)
    return (_shift_right(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def gumbel(keys: torch.Tensor, step: int | torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel numbers `-log(-log(u))` with `u` from [`uniform`]."""
    return -torch.log(-torch.log(uniform(keys, step, index)))
