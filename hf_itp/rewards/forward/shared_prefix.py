"""
A causal model's hidden states for sequences that begin alike: the common beginning runs once, and the rest of the
sequences is packed into one row without padding.

The beginning's keys and values are read once for all sequences. A sequence's attention to itself and to the beginning
is merged exactly (Hydragen, [2402.05099](https://huggingface.co/papers/2402.05099)). Knows nothing of text, heads or
rewards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_itp.functional.kernels.attention import attend, attend_causally, merge_attention
from hf_itp.models.agreement import Verdicts
from hf_itp.models.attention_interface import EXACT_ATTENTION, AttentionCall, active, attention_interface
from hf_itp.models.view import can_be_viewed, model_view

ATTENTION = "hf_itp_packed_rows"

KeysAndValues = tuple[torch.Tensor, torch.Tensor]

# Enough for rows of several tokens: wrong positions or a leak between rows show from the second token on.
_PROBED_TOKENS = 12

_packs = Verdicts[bool]()
_active: ContextVar[Packing] = ContextVar("hf_itp_packing")


class SharedPrefix:
    """
    A prefix that a model has run once, for sequences that continue it.

    Args:
        body (`PreTrainedModel`): The view of the model's body that [`packing_body`] makes.
        ids (`torch.LongTensor` of shape `(P,)`): The prefix.
    """

    def __init__(self, body: Any, ids: torch.Tensor) -> None:
        self._body, self._length = body, len(ids)
        self._windows = _windows(body.config)
        packing = Packing([len(ids)], self._windows)
        self._run(ids, 0, packing)
        self._prefix = packing.kept

    def last_hidden(self, suffixes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the hidden states `(len(suffixes), D)` at the last token of each suffix `(T,)`, `T >= 1`."""
        lengths = [len(suffix) for suffix in suffixes]
        hidden = self._run(torch.cat(list(suffixes)), self._length, Packing(lengths, self._windows, self._prefix))
        return hidden[torch.tensor(lengths, dtype=torch.long, device=hidden.device).cumsum(0) - 1]

    def _run(self, ids: torch.Tensor, start: int, packing: Packing) -> torch.Tensor:
        positions = torch.cat([torch.arange(start, start + length) for length in packing.lengths]).to(ids.device)
        with packing.active():
            outputs = self._body(input_ids=ids[None], position_ids=positions[None], use_cache=False, return_dict=True)
        return outputs.last_hidden_state[0]


def packing_body(model: PreTrainedModel, ids: torch.Tensor) -> Any | None:
    """
    Return a view of the model's body for [`SharedPrefix`], `None` if the model cannot use one.

    Anything that passes from token to token other than by attention (a recurrent state, positions counted along the
    batch) would leak between the rows. The model's description is checked at every use; once per model a few of the
    tokens `ids` of shape `(L,)` are run both ways.
    """
    if not _says_it_can(model):
        return None
    body = model_view(model, ATTENTION).base_model
    agrees = _packs.recall(model)
    if agrees is None and (agrees := _agrees(model.base_model, body, ids)) is not None:
        _packs.remember(model, agrees)
    return body if agrees else None


def _says_it_can(model: PreTrainedModel) -> bool:
    body: Any = model.base_model
    attention = body.config._attn_implementation
    if not (body._supports_attention_backend and attention in EXACT_ATTENTION and can_be_viewed(model)):
        return False
    if attention == "sdpa" and getattr(body.config, "attn_logit_softcapping", None) is not None:
        return False  # sdpa drops or refuses it, and the reward is what the model itself computes
    try:
        _windows(body.config)
    except CannotPack:
        return False
    return "position_ids" in inspect.signature(body.forward).parameters


def _windows(config: Any) -> list[int | None]:
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError):
        raise CannotPack("the configuration names unknown layers") from None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise CannotPack("a layer keeps something other than keys and values")
    return [getattr(layer, "sliding_window", None) for layer in layers]


def _agrees(plain: Any, body: Any, ids: torch.Tensor) -> bool | None:
    """Return whether the body packs rows as the model runs them; `None` if a NaN or a failed pass leaves that open."""
    ids = ids[:_PROBED_TOKENS]
    cut = (len(ids) + 1) // 2
    suffixes = [ids[cut:], ids[:cut], ids[:1]]
    try:
        packed = SharedPrefix(body, ids[:cut]).last_hidden(suffixes)
    except CannotPack:
        return False
    except Exception:
        # It may have nothing to do with the model (a lack of memory), so run whole sequences now and try again.
        return None
    for hidden, suffix in zip(packed, suffixes, strict=True):
        row = torch.cat([ids[:cut], suffix])[None]
        expected = plain(input_ids=row, use_cache=False, return_dict=True).last_hidden_state[0, -1]
        tolerance = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
        if bool(hidden.isnan().any() | expected.isnan().any()):
            return None
        if not bool((hidden - expected).norm() <= tolerance * expected.norm()):
            return False
    return True


class CannotPack(Exception):
    """The model attends in a way that packed rows do not support."""


@dataclass
class Packing:
    """
    The layout of one pass over packed rows.

    Args:
        lengths (`list[int]`): Tokens of each row.
        windows (`list[int | None]`): Sliding window of each layer, `None` without one.
        prefix (`list`, *optional*): Keys and values `(1, H, P, D)` of each layer before every row. Without it the pass
            stores those of its own tokens in `kept`.
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
        """Return the keys and values before the rows in the layer that attends now, `None` without a prefix."""
        layer, self._num_layers = self._num_layers, self._num_layers + 1
        known = layer < len(self.windows) and getattr(module, "layer_idx", None) == layer
        if not known or window != self.windows[layer] or not getattr(module, "is_causal", True):
            raise CannotPack("a layer attends differently from what the configuration says")
        return None if self.prefix is None else self.prefix[layer]

    def keep(self, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        """Store the keys and values of a layer that later tokens can see."""
        first = 0 if window is None else max(0, key.shape[2] - window + 1)
        # Copies: views would keep the rest in memory, and the queries that some models project together with them.
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
        # The packed rows already are one long query.
        output, lse = attend(query, *prefix, scaling, softcap)
        outputs.append(output)
        lses.append(lse)
    return merge_attention(outputs, lses, None if sink is None else sink.view(1, -1, 1)).transpose(1, 2)
