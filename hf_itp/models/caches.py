"""
Ask a cache of transformers what it holds and what it allows, whatever kinds of layers it has.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
)

from hf_itp.models.host_names import QUANTIZED_LAYER


def layers_of(cache: Cache) -> list[Any]:
    """Return all layers, those that attend to an encoder included."""
    return [layer for part in _parts(cache) for layer in part.layers]


def is_filled(cache: Cache) -> bool:
    """
    Return whether the cache holds a past.

    `Cache.get_seq_length` would not do: it knows only attention layers, and raises without one.
    """
    return any(map(_layer_is_filled, layers_of(cache)))


def keeps_keys(cache: Cache) -> bool:
    """Return whether any layer is an attention layer; `False` for a cache that gets its layers in the first pass."""
    return any(isinstance(layer, CacheLayerMixin) for layer in layers_of(cache))


def is_quantized(cache: Cache) -> bool:
    """Return whether the past is stored in fewer bits than it is computed in."""
    return any(isinstance(layer, QUANTIZED_LAYER) for layer in layers_of(cache))


def is_offloaded(cache: Cache) -> bool:
    """Return whether each layer's past waits in CPU memory until the layer runs."""
    return any(getattr(part, "offloading", False) for part in _parts(cache))


def why_rows_cannot_be_copied(cache: Cache) -> str | None:
    """Return why `Cache.reorder_cache` may not expand or compact the rows, or `None` if it may."""
    if any(isinstance(layer, StaticLayer) for layer in layers_of(cache)):
        return "the cache has a fixed size"
    if is_quantized(cache):
        return "the cache is quantised"
    if is_offloaded(cache):
        # Its copies to the CPU may still run when a pass ends, and only the next pass waits for them.
        return "the cache is offloaded"
    return None


def own_cache(cache: Cache) -> Cache:
    """Return a copy to write to. It shares the stream of an offloaded cache, which cannot be copied."""
    streams = [value for part in _parts(cache) for value in vars(part).values() if isinstance(value, torch.Stream)]
    return copy.deepcopy(cache, {id(stream): stream for stream in streams})


def _parts(cache: Cache) -> list[Cache]:
    if isinstance(cache, EncoderDecoderCache):
        return [*_parts(cache.self_attention_cache), *_parts(cache.cross_attention_cache)]
    return [cache]


def _layer_is_filled(layer: Any) -> bool:
    # A layer of a hybrid model may be both.
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = (*layer.is_conv_states_initialized.values(), *layer.is_recurrent_states_initialized.values())
        if any(states):
            return True
    return isinstance(layer, CacheLayerMixin) and int(layer.get_seq_length()) > 0
