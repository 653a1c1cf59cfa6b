"""
The decoder that pays for a prompt once: in time, in memory, and in every step that looks back at it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from hf_itp.sampling.packed_linear import packed_linears
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.shared_prefix.cache import ATTENTION, CannotShare, SharedLayer, SharedPrefixCache
from hf_itp.sampling.shared_prefix.view import can_be_viewed, model_view

# What a plain text prompt is prepared as. Anything beside it (pictures, virtual tokens) is not for this decoder.
_KNOWN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def can_share_prefix(model: Any, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    """Whether what can be told before a pass speaks for [`SharedPrefixDecoder`]; the first pass may still refuse."""
    given = {name for name, value in model_kwargs.items() if value is not None}
    return (
        bool(model._supports_attention_backend)
        and not model.config.is_encoder_decoder
        and not model._is_stateful
        and model.config._attn_implementation in ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
        and given <= _KNOWN
        and bool(model_kwargs.get("use_cache"))
        and model_kwargs.get("position_ids") is not None
        and _positions_are_usual(input_ids, model_kwargs)
        and "prepare_inputs_for_generation" not in vars(model)  # peft's virtual tokens come in there
        and can_be_viewed(model)
    )


def _positions_are_usual(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    usual = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    positions = model_kwargs["position_ids"]
    return positions.shape == usual.shape and bool(((positions == usual) | (mask == 0)).all())


class SharedPrefixDecoder:
    """
    Keys and values of a prompt exist once and are read once per step for all rows that continue it.

    Each prompt is run alone and without padding, so its logits are the same whatever else is in the batch.

    Raises:
        `CannotShare`: If the first pass shows a cache or an attention that two parts of keys cannot serve.
    """

    path = "shared"
    rows_can_leave = True

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ):
        self._device = input_ids.device
        self._honours_softcap = model.config._attn_implementation != "sdpa"
        self._prompt_index = self._positions = torch.empty(0, dtype=torch.long)
        self._lengths: list[int] = []
        self._forward_kwargs = {name: model_kwargs[name] for name in ("logits_to_keep",) if name in model_kwargs}
        packed = packed_linears(model)
        prompt_view = model_view(model, replacements=packed)
        caches, logits = [], []
        for ids in unpadded(input_ids, model_kwargs.get("attention_mask")):
            prompt = torch.tensor([ids], device=self._device)
            cache = copy.deepcopy(model_kwargs["past_key_values"])
            positions = torch.arange(len(ids), device=self._device)[None]
            prepared = {"past_key_values": cache, "use_cache": True, "position_ids": positions, **self._forward_kwargs}
            outputs = prompt_view._prefill(prompt, generation_config, prepared)
            logits.append(outputs.logits[:, -1].to(dtype=torch.float32, copy=True))
            caches.append(outputs.past_key_values)
            self._lengths.append(len(ids))
        self._prefixes = _by_layer(caches)
        self._prompt_logits = torch.cat(logits)
        self._view = model_view(model, ATTENTION, packed)
        self._try_a_step(input_ids[:1])

    def start(self, prompt_index: torch.Tensor) -> torch.Tensor:
        layers = [SharedLayer(prefixes) for prefixes in self._prefixes]
        self._cache = SharedPrefixCache(layers, groups=[], honours_softcap=self._honours_softcap)
        self._assign(prompt_index, torch.tensor(self._lengths, device=self._device)[prompt_index, None])
        return self._prompt_logits[prompt_index.to(self._prompt_logits.device)]

    def advance(self, input_ids: torch.Tensor) -> torch.Tensor:
        with self._cache.active():
            outputs = self._view(
                input_ids=input_ids[:, -1:],
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                return_dict=True,
                **self._forward_kwargs,
            )
        self._positions = self._positions + 1
        return outputs.logits[:, -1].float()

    def keep(self, index: torch.Tensor) -> None:
        for layer in self._cache.layers:
            layer.keep(index)
        self._assign(self._prompt_index[index], self._positions[index])

    def bytes_per_row(self, length: int) -> int:
        longest = max(self._lengths)
        own = sum(
            tensor.numel() // tensor.shape[2] * tensor.element_size()
            for prefixes in self._prefixes
            for tensor in prefixes[0]
        )
        # A row pays for its own tokens alone, and for the copy made while its buffer grows.
        return 2 * own * max(0, length - longest)

    def _assign(self, prompt_index: torch.Tensor, positions: torch.Tensor) -> None:
        self._prompt_index, self._positions = prompt_index, positions
        self._cache.groups = _groups(prompt_index)

    def _try_a_step(self, input_ids: torch.Tensor) -> None:
        """One token after the first prompt: what a model does with its keys shows only when it attends."""
        self.start(torch.zeros(1, dtype=torch.long, device=self._device))
        self.advance(input_ids)


def _by_layer(caches: list[Cache]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Keys and values of every prompt, layer by layer."""
    for cache in caches:
        for layer in cache.layers:
            plain = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            if not plain or not getattr(layer, "is_initialized", False):
                raise CannotShare(f"the cache has a layer of type {type(layer).__name__}")
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return [[(layer.keys, layer.values) for layer in of_prompts] for of_prompts in layers]


def _groups(prompt_index: torch.Tensor) -> list[tuple[int, slice | torch.Tensor]]:
    groups: list[tuple[int, slice | torch.Tensor]] = []
    for prompt in prompt_index.unique().tolist():
        rows = (prompt_index == prompt).nonzero().squeeze(-1)
        first, last = int(rows[0]), int(rows[-1])
        # A slice reads the queries in place; an index copies them.
        contiguous = last - first + 1 == len(rows)
        groups.append((prompt, slice(first, last + 1) if contiguous else rows))
    return groups
