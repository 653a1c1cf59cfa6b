"""
The decoder that pays for a prompt once: in time, in memory, and in every step that looks back at it.
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from hf_itp.sampling.packed_linear import packed_linears
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.shared_prefix.attention import ATTENTION
from hf_itp.sampling.shared_prefix.cache import CannotShare, SharedLayer, SharedPrefixCache
from hf_itp.sampling.shared_prefix.compiled import compiled_step
from hf_itp.sampling.shared_prefix.view import can_be_viewed, model_view

# What a plain text prompt is prepared as. Anything beside it (pictures, virtual tokens) is not for this decoder.
_KNOWN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
# How far a step's logits may be from the model's own, as a share of the largest: rounding, not another attention.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1

# What the first pass of each model showed, under the attention and in the mode it had then.
_verdicts: WeakKeyDictionary[Any, tuple[tuple[str, bool], bool]] = WeakKeyDictionary()


def can_share_prefix(model: Any, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    """Whether what can be told before a pass speaks for [`SharedPrefixDecoder`]; the first pass may still refuse."""
    return (
        prompts_are_plain(model, input_ids, model_kwargs)
        and bool(model._supports_attention_backend)
        and not model.config.is_encoder_decoder
        and not model._is_stateful
        and model.config._attn_implementation in ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
        # Sharded weights are gathered by the modules a view would go around, in equally many passes everywhere.
        and not is_deepspeed_zero3_enabled()
        and not is_fsdp_managed_module(model)
        and can_be_viewed(model)
        and _verdicts.get(model) != (_mode(model), False)
    )


def prompts_are_plain(model: Any, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    """Whether prompts are their tokens alone, at the usual positions, to be run with a cache."""
    given = {name for name, value in model_kwargs.items() if value is not None}
    return (
        given <= _KNOWN
        and bool(model_kwargs.get("use_cache"))
        and model_kwargs.get("position_ids") is not None
        and _positions_are_usual(input_ids, model_kwargs)
        and "prepare_inputs_for_generation" not in vars(model)  # peft's virtual tokens come in there
    )


def same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether logits differ from a model's own by no more than rounding in the precision of the latter."""
    allowed = _TOLERANCE.get(theirs.dtype, _HALF_TOLERANCE) * theirs.float().abs().max()
    return bool((ours - theirs.float()).abs().max() <= allowed)


def _mode(model: Any) -> tuple[str, bool]:
    return model.config._attn_implementation, model.training


def _positions_are_usual(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    if bool((mask.sum(-1) == 0).any()):
        return False  # an empty prompt has no keys to share
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
    rows_can_leave = rows_can_join = True

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ):
        try:
            self._run_prompts(model, input_ids, generation_config, model_kwargs)
        except CannotShare:
            _verdicts[model] = (_mode(model), False)
            raise
        _verdicts[model] = (_mode(model), True)

    def _run_prompts(
        self,
        model: Any,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> None:
        self._device = input_ids.device
        self._honours_softcap = model.config._attn_implementation != "sdpa"
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
        self._windows = [getattr(layer, "sliding_window", None) for layer in caches[0].layers]
        self._prompt_logits = torch.cat(logits)
        self._view = model_view(model, ATTENTION, packed)
        self._compiled = compiled_step(model, generation_config)
        self._try_a_step(model, input_ids[:1, -1:], caches[0])

    def start(self, prompt_index: torch.Tensor) -> torch.Tensor:
        layers = [SharedLayer(*layer) for layer in zip(self._prefixes, self._windows, strict=True)]
        self._cache = SharedPrefixCache(layers, honours_softcap=self._honours_softcap)
        self._positions = torch.empty(0, 1, dtype=torch.long, device=self._device)
        return self.join(prompt_index)

    def join(self, prompt_index: torch.Tensor) -> torch.Tensor:
        self._cache.join(prompt_index)
        lengths = torch.tensor(self._lengths, device=self._device)
        self._positions = torch.cat([self._positions, lengths[prompt_index, None]])
        return self._prompt_logits[prompt_index.to(self._prompt_logits.device)]

    def advance(self, input_ids: torch.Tensor) -> torch.Tensor:
        newest = input_ids[:, -1:].contiguous()
        # torch.compile would compile a step of one row for itself.
        step = self._view if self._compiled is None or len(newest) == 1 else self._compiled
        with self._cache.active():
            outputs = step(
                input_ids=newest,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                return_dict=True,
                **self._forward_kwargs,
            )
        self._positions = self._positions + 1
        return outputs.logits[:, -1].float()

    def keep(self, index: torch.Tensor) -> None:
        self._cache.keep(index)
        self._positions = self._positions[index]

    def bytes_per_row(self, length: int) -> int:
        longest = max(self._lengths)
        own = sum(
            tensor.numel() // tensor.shape[2] * tensor.element_size()
            for prefixes in self._prefixes
            for tensor in prefixes[0]
        )
        # A row pays for its own tokens alone, and for the copy made while its buffer grows.
        return 2 * own * max(0, length - longest)

    def _try_a_step(self, model: Any, token: torch.Tensor, cache: Cache) -> None:
        """
        One token after the first prompt: what a model does with its keys shows only when it attends. The first time,
        its own step has to agree: no list of what attention may be asked for is complete.
        """
        positions = torch.full_like(token, self._lengths[0])
        self.start(torch.zeros(1, dtype=torch.long, device=self._device))
        ours = self.advance(token)
        if _verdicts.get(model) == (_mode(model), True):
            return
        # `update` concatenates into new tensors, so the prompt's own stay as they are.
        outputs = model(
            input_ids=token,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **self._forward_kwargs,
        )
        if not same_logits(ours, outputs.logits[:, -1]):
            raise CannotShare("a step does not agree with the model's own")


def _by_layer(caches: list[Cache]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Keys and values of every prompt, layer by layer."""
    for cache in caches:
        for layer in cache.layers:
            plain = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            if not plain or not getattr(layer, "is_initialized", False):
                raise CannotShare(f"the cache has a layer of type {type(layer).__name__}")
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return [[(layer.keys, layer.values) for layer in of_prompts] for of_prompts in layers]
