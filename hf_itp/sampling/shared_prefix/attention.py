"""
Attention of a decoding step over a [`SharedPrefixCache`], with one entry for transformers and one for torch.compile.
"""

from __future__ import annotations

import torch

from hf_itp.functional.kernels.attention import attend, merge_attention
from hf_itp.models.attention_interface import AttentionCall, attention_interface
from hf_itp.sampling.shared_prefix.cache import CannotShare, SharedLayer, SharedPrefixCache, active_cache

ATTENTION = "hf_itp_shared_prefix"


@attention_interface(ATTENTION)
def shared_prefix_attention(call: AttentionCall) -> torch.Tensor:
    """
    Attend with one query per row to its prompt's keys and its own, behind transformers' attention interface.

    All rows of a prompt, and all heads that share a key head, are queries of one product with the prompt's keys: no
    key is repeated, and none is read twice.
    """
    module, query, key, value, mask, scaling, dropout, window, softcap, sink = call
    if torch.compiler.is_compiling():
        # The cache changes with every step, so the graph sees one opaque operator.
        return torch.ops.hf_itp.attend_shared(query, key, value, module.layer_idx, scaling, window, softcap, sink)
    cache = active_cache.get()
    layer = cache.take(key)
    if softcap is not None and not cache.honours_softcap:
        raise CannotShare("the model asks for a soft cap that its own attention drops")
    if mask is not None or dropout > 0.0:
        raise CannotShare("the model attends with a mask of its own or with dropout")
    if layer.window not in (None, window):
        # Chunked attention, for example, keeps its keys like a window but hides them differently.
        raise CannotShare("the model keeps a window of keys and does not attend to a window")
    return _attend_to_both(cache, layer, query, scaling, window, softcap, sink)


def _attend_to_both(
    cache: SharedPrefixCache,
    layer: SharedLayer,
    query: torch.Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Return the outputs `(R, 1, H, E)` of the queries `(R, H, 1, D)`."""
    # Group the heads that share a key head.
    rows, heads, _, width = query.shape
    key_heads = layer.prefixes[0][0].shape[1]
    grouped = query.view(rows, key_heads, heads // key_heads, width)
    # Attend to each row's own tokens, cohort by cohort.
    parts = [
        attend(part, *own.last(sliding_window), scaling, softcap)
        for part, own in zip(cache.by_cohort(grouped), layer.own, strict=True)
    ]
    own, own_lse = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))

    # Attend to the prompts, each with all its rows at once. How much of a prompt a window still shows depends on how
    # many tokens a row has of its own.
    shared, shared_lse = torch.zeros_like(own), torch.full_like(own_lse, -torch.inf)
    groups = cache.groups if sliding_window is None else cache.groups_by_cohort
    for group in groups:
        prompt_key, prompt_value = layer.prefixes[group.prompt]
        if sliding_window is not None:
            hidden = max(0, prompt_key.shape[2] + layer.own[group.cohort].length - sliding_window)
            prompt_key, prompt_value = prompt_key[:, :, hidden:], prompt_value[:, :, hidden:]
        if prompt_key.shape[2] == 0:
            continue
        folded = grouped[group.rows].transpose(0, 1).reshape(1, key_heads, -1, width)
        output, lse = attend(folded, prompt_key, prompt_value, scaling, softcap)
        output = output.view(key_heads, -1, heads // key_heads, output.shape[-1]).transpose(0, 1)
        lse = lse.view(key_heads, -1, heads // key_heads).transpose(0, 1)
        if len(groups) == 1:
            shared, shared_lse = output, lse
        else:
            shared[group.rows], shared_lse[group.rows] = output, lse

    # Merge both by their log-sum-exp, the sink in the denominator.
    sink = None if sink is None else sink.view(1, key_heads, -1)
    merged = merge_attention([own, shared], [own_lse, shared_lse], sink)
    return merged.reshape(rows, 1, heads, -1)


def _attend_shared(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer_idx: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Cache a token's keys and values and attend. Only in compiled steps, after the model has taken one uncompiled."""
    cache = active_cache.get()
    key, _ = cache.update(key, value, layer_idx)
    return _attend_to_both(cache, cache.take(key), query, scaling, sliding_window, softcap, sink)


def _like_attend_shared(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object) -> torch.Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1])


_library = torch.library.Library("hf_itp", "DEF")
_library.define(
    "attend_shared(Tensor query, Tensor key, Tensor value, int layer_idx, float scaling, int? sliding_window, "
    "float? softcap, Tensor? sink) -> Tensor",
    # CUDA graphs are captured around the operator, since its tensors grow from step to step. torch before 2.9 has
    # neither this tag nor inductor's `graph_partition`.
    tags=tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)])),
)
_library.impl("attend_shared", _attend_shared, "CompositeExplicitAutograd")
torch.library.register_fake("hf_itp::attend_shared", _like_attend_shared, lib=_library)
