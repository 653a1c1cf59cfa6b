"""
Check whether a call's prompts can be shared, before any forward pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from hf_itp.models.attention_interface import EXACT_ATTENTION
from hf_itp.models.caches import is_offloaded
from hf_itp.models.host_names import cache_entry
from hf_itp.models.view import can_be_viewed
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.shared_prefix.cache import CannotShare, CannotShareNow, UnknownInterface

# Inputs that `generate` prepares for a plain text prompt, besides its cache.
_KNOWN = {"attention_mask", "position_ids", "use_cache", "logits_to_keep"}
# Inputs that a caller may give besides the tokens of a prompt, or in their place.
_BESIDE_TOKENS = {"inputs_embeds", "token_type_ids"}


def check_can_share(call: DecodingCall) -> tuple[str, Cache]:
    """
    Return the name of the empty cache that `generate` prepared, and the cache.

    Raises:
        `CannotShare`: If model or inputs cannot share a prefix. The first pass may still reject them.
    """
    if not call.model_kwargs.get("use_cache"):
        raise CannotShareNow("`use_cache` is False")
    _check_model(call.model)
    return _check_inputs(call.model, call.input_ids, call.model_kwargs)


def check_layers(cache: Cache) -> None:
    """
    Check that every layer keeps the keys and values of all tokens, or of the last ones.

    Raises:
        `CannotShare`: If one does not.
    """
    for layer in _interface(cache, "layers"):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise CannotShareNow(f"the cache has a layer of type {type(layer).__name__}")
        sliding = isinstance(layer, DynamicSlidingWindowLayer)
        for name in ("keys", "values", "is_initialized", *(["sliding_window"] if sliding else [])):
            _interface(layer, name)


def _interface(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise UnknownInterface(f"{type(owner).__name__} has no `{name}`") from None


def _check_model(model: Any) -> None:
    if model.config.is_encoder_decoder:
        raise CannotShare("it is an encoder-decoder")
    if not _interface(model, "_supports_attention_backend"):
        raise CannotShare("its attention does not go through transformers' attention interface")
    if _interface(model, "_is_stateful"):
        raise CannotShare("it keeps a state beside keys and values")
    attention = _interface(model.config, "_attn_implementation")
    if attention not in EXACT_ATTENTION:
        raise CannotShare(f"the attention implementation {attention!r} is not known to share")
    # A view would bypass the modules that gather sharded weights, in equally many passes on every process.
    if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
        raise CannotShare("its weights are sharded over processes")
    if not can_be_viewed(model):
        raise CannotShare("a module has a `forward` of its own (accelerate's hooks, torch.compile) or is sharded")
    if "prepare_inputs_for_generation" in vars(model):
        raise CannotShare("peft puts virtual tokens before the prompt")


def _check_inputs(model: Any, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> tuple[str, Cache]:
    given = {name for name, value in model_kwargs.items() if value is not None}
    entry = cache_entry(model_kwargs)
    beside = sorted(given - _KNOWN - ({entry[0]} if entry is not None else set()))
    if beside:
        names = ", ".join(f"`{name}`" for name in beside)
        modalities = getattr(model, "input_modalities", "text")
        if modalities in ("text", ("text",), ["text"]) and not _BESIDE_TOKENS & set(beside):
            raise UnknownInterface(f"`generate` prepared an input that is not known: {names}")
        raise CannotShareNow(f"{names} is given beside the prompt's tokens")
    if entry is None:
        raise UnknownInterface("`generate` prepared no cache")
    if is_offloaded(entry[1]):
        raise CannotShareNow("the cache is offloaded")
    check_layers(entry[1])
    if model_kwargs.get("position_ids") is None:
        if "position_ids" in inspect.signature(model.forward).parameters:
            raise UnknownInterface("`generate` prepared no `position_ids`")
        raise CannotShare("it takes no `position_ids`")
    _check_positions(input_ids, model_kwargs)
    return entry


def _check_positions(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    positions = model_kwargs["position_ids"]
    if mask.shape != input_ids.shape or positions.shape != mask.shape:
        raise CannotShareNow("mask or positions are not one per token")
    if bool((mask.sum(-1) == 0).any()):
        raise CannotShareNow("a prompt is empty, and has no keys to share")
    usual = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if not bool(((positions == usual) | (mask == 0)).all()):
        raise CannotShareNow("tokens are not at their usual positions")
