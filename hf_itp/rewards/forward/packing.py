"""
Rows of different lengths in one forward pass without padding: one behind the other, and an attention in which each
sees itself and the prefix all of them continue.

The prefix's keys and values exist once and are read once for all rows; the two parts of a row's attention are merged
exactly (Hydragen, [2402.05099](https://huggingface.co/papers/2402.05099)).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import nn

from hf_itp.functional.kernels.attention import attend, attend_causally, merge_attention
from hf_itp.models.attention_interface import AttentionCall, active, attention_interface

ATTENTION = "hf_itp_packed_rows"

KeysAndValues = tuple[torch.Tensor, torch.Tensor]

_active: ContextVar[Packing] = ContextVar("hf_itp_packing")


class CannotPack(Exception):
    """The model attends in a way that is not known here."""


@dataclass
class Packing:
    """
    What belongs to whom in a pass over rows that lie one behind the other.

    Args:
        lengths (`list[int]`): Tokens of each row.
        windows (`list[int | None]`): How far each layer of the model is to look back, `None` without a limit.
        prefix (`list`, *optional*): Keys and values `(1, H, P, D)` of each layer that stand before every row; nothing
            does without it, and the pass leaves those of its own tokens in `kept`.
    """

    lengths: list[int]
    windows: list[int | None]
    prefix: list[KeysAndValues] | None = None
    kept: list[KeysAndValues] = field(default_factory=list)
    _num_layers: int = field(default=0, init=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let attention follow this packing inside, in this thread only."""
        with active(_active, self):
            yield
        if self._num_layers != len(self.windows):
            raise CannotPack(f"{self._num_layers} of {len(self.windows)} layers attended through the interface")

    def next_layer(self, module: nn.Module, window: int | None) -> KeysAndValues | None:
        """What stands before the rows in the layer that attends now, `None` if nothing does."""
        layer, self._num_layers = self._num_layers, self._num_layers + 1
        known = layer < len(self.windows) and getattr(module, "layer_idx", None) == layer
        if not known or window != self.windows[layer] or not getattr(module, "is_causal", True):
            raise CannotPack("a layer attends differently from what the configuration says")
        return None if self.prefix is None else self.prefix[layer]

    def keep(self, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        """Keeps of a layer what later tokens can look back at."""
        first = 0 if window is None else max(0, key.shape[2] - window + 1)
        # Copies: views would hold on to what is not needed, and to the queries some models project together with them.
        self.kept.append((key[:, :, first:].clone(), value[:, :, first:].clone()))


@attention_interface(ATTENTION)
def packed_attention(call: AttentionCall) -> torch.Tensor:
    """Attend in a batch of one that holds the rows of the active [`Packing`]."""
    module, query, key, value, _, scaling, _, window, softcap, sink = call
    packing = _active.get()
    prefix = packing.next_layer(module, window)
    if prefix is None:
        packing.keep(key, value, window)
    longest = max(packing.lengths) + (0 if prefix is None else prefix[0].shape[2])
    slides = window is not None and window < longest

    parts = []
    for rows in zip(*(tensor.split(packing.lengths, dim=2) for tensor in (query, key, value)), strict=True):
        row_query, row_key, row_value = rows
        if slides and prefix is not None:
            row_key, row_value = torch.cat([prefix[0], row_key], dim=2), torch.cat([prefix[1], row_value], dim=2)
        parts.append(attend_causally(row_query, row_key, row_value, scaling, softcap, window))
    outputs = [torch.cat([output for output, _ in parts], dim=2)]
    lses = [torch.cat([lse for _, lse in parts], dim=2)]
    if prefix is not None and not slides and prefix[0].shape[2] > 0:
        # Packed as they are, the rows are one long query already.
        output, lse = attend(query, *prefix, scaling, softcap)
        outputs.append(output)
        lses.append(lse)
    return merge_attention(outputs, lses, None if sink is None else sink.view(1, -1, 1)).transpose(1, 2)
