"""
Decode with each prompt run once, stored once, and read once per step, however many rows continue it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache

from hf_itp.models.agreement import Verdicts
from hf_itp.models.packed_linear import packed_linears
from hf_itp.models.view import model_view
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.shared_prefix.attention import ATTENTION
from hf_itp.sampling.shared_prefix.cache import CannotShare, CannotShareNow, SharedLayer, SharedPrefixCache
from hf_itp.sampling.shared_prefix.compiled import compiled_step
from hf_itp.sampling.shared_prefix.conditions import check_can_share, check_layers

# Allowed difference of a step's logits from the model's own, as a share of the largest: only rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1

# Result of a model's first pass in each mode: why it cannot share, "" if it can.
_verdicts = Verdicts[str]()


def same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """
    Return whether logits differ from a model's own only by rounding in the model's precision.

    Infinite logits must be equal, and nothing agrees with a NaN.
    """
    allowed = _TOLERANCE.get(theirs.dtype, _HALF_TOLERANCE)
    ours, theirs = ours.float(), theirs.float()
    finite = ours.isfinite() & theirs.isfinite()
    if not bool((finite | (ours == theirs)).all()):
        return False
    difference, size = (ours - theirs)[finite].abs(), theirs[finite].abs()
    return difference.numel() == 0 or bool(difference.max() <= allowed * size.max())


def _mode(model: Any, device: torch.device) -> tuple[Any, ...]:
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return model.config._attn_implementation, model.training, autocast


class SharedPrefixDecoder:
    """
    Keep a prompt's keys and values once, and read them once per step for all rows that continue it.

    Each prompt runs by itself and without padding, so its logits are the same whatever else is in the batch.

    Raises:
        `CannotShare`: If a prompt cannot be shared; some models show that only in the first pass.
    """

    path, path_reason = "shared", "a prompt's keys and values are kept once for all its candidates"
    rows_can_leave = rows_can_join = True

    def __init__(self, call: DecodingCall):
        model, self._device = call.model, call.input_ids.device
        self._cache_name, cache = check_can_share(call)
        if reason := _verdicts.recall(model, _mode(model, self._device)):
            raise CannotShare(reason)
        try:
            self._run_prompts(call, cache)
        except CannotShareNow:
            raise
        except CannotShare as error:
            _verdicts.remember(model, str(error), _mode(model, self._device))
            raise

    def _run_prompts(self, call: DecodingCall, empty: Cache) -> None:
        model, model_kwargs = call.model, call.model_kwargs
        self._honours_softcap = model.config._attn_implementation != "sdpa"
        self._lengths: list[int] = []
        self._forward_kwargs = {name: model_kwargs[name] for name in ("logits_to_keep",) if name in model_kwargs}
        packed = packed_linears(model)
        prompt_view = model_view(model, replacements=packed)
        caches, logits = [], []
        for ids in unpadded(call.input_ids, model_kwargs.get("attention_mask")):
            prompt = torch.tensor([ids], device=self._device)
            cache = copy.deepcopy(empty)
            positions = torch.arange(len(ids), device=self._device)[None]
            prepared = {self._cache_name: cache, "use_cache": True, "position_ids": positions, **self._forward_kwargs}
            outputs = prompt_view._prefill(prompt, call.generation_config, prepared)
            logits.append(outputs.logits[:, -1].to(dtype=torch.float32, copy=True))
            caches.append(cache)
            self._lengths.append(len(ids))
        self._prefixes = _by_layer(caches)
        self._windows = [getattr(layer, "sliding_window", None) for layer in caches[0].layers]
        self._prompt_logits = torch.cat(logits)
        self._view = model_view(model, ATTENTION, packed)
        self._compiled = compiled_step(model, call.generation_config)
        self._try_a_step(model, call.input_ids[:1, -1:], caches[0])

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
        # torch.compile would compile a separate step for one row.
        step = self._view if self._compiled is None or len(newest) == 1 else self._compiled
        with self._cache.active():
            outputs = step(
                input_ids=newest,
                position_ids=self._positions,
                use_cache=True,
                return_dict=True,
                **{self._cache_name: self._cache},
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
        # A row needs memory only for its own tokens, and for the copy made while its buffer grows.
        return 2 * own * max(0, length - longest)

    def _try_a_step(self, model: Any, token: torch.Tensor, cache: Cache) -> None:
        """
        Run one token after the first prompt, since only a step shows what a model does with its keys.

        The first time, compare with the model's own step: no list of what a model may ask of attention is complete.
        """
        positions = torch.full_like(token, self._lengths[0])
        self.start(torch.zeros(1, dtype=torch.long, device=self._device))
        ours = self.advance(token)
        if _verdicts.recall(model, _mode(model, self._device)) is not None:
            return
        # `update` concatenates into new tensors, so the prompt's own stay as they are.
        outputs = model(
            input_ids=token,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{self._cache_name: cache},
            **self._forward_kwargs,
        )
        theirs = outputs.logits[:, -1]
        if bool(ours.isnan().any() | theirs.isnan().any()):
            raise CannotShareNow("the model's logits are NaN, so a step cannot be compared with the model's own")
        if not same_logits(ours, theirs):
            raise CannotShare("a step does not agree with the model's own")
        _verdicts.remember(model, "", _mode(model, self._device))


def _by_layer(caches: list[Cache]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return keys and values of every prompt, layer by layer."""
    for cache in caches:
        check_layers(cache)
    layers: list[list[Any]] = [list(cache.layers) for cache in caches]
    if not all(of_prompt and all(layer.is_initialized for layer in of_prompt) for of_prompt in layers):
        raise CannotShare("the model does not fill the cache it is given")
    return [[(layer.keys, layer.values) for layer in of_prompts] for of_prompts in zip(*layers, strict=True)]
