"""
Check a policy and its settings before a strategy decodes with it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache

from hf_itp.errors import ArgumentError, UnsupportedModelError
from hf_itp.models.caches import is_filled, is_offloaded, is_quantized, keeps_keys
from hf_itp.models.host_names import forgets_virtual_tokens
from hf_itp.policies.settings import check_settings
from hf_itp.policies.tokenizers import policy_tokenizer

__all__ = ["check_generation_config", "check_model", "check_model_kwargs", "policy_tokenizer"]

# `GenerationConfig` fields that select another way of decoding than sampling, with the values that do not.
_OTHER_DECODING: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
}
_PER_STEP_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Arguments of peft's `generate` that it stores in hooks, one entry per row of the batch.
_PER_ROW_ADAPTERS = {"adapter_names", "alora_offsets"}
FIXED_CACHES = ("static", "offloaded_static", "sliding_window", "paged")


def check_model(model: Any) -> None:
    """
    Raise unless a strategy can decode with the model.

    Raises:
        `UnsupportedModelError`: If the model has its own decoding loop, which a strategy would bypass.
        `ArgumentError`: If peft was given an adapter for each row, or the checkpoint's generation config holds a NaN
            or a token that does not exist.
    """
    name = type(model).__name__
    if type(model)._sample is not GenerationMixin._sample:
        raise UnsupportedModelError(
            f"`strategy` needs the standard decoding loop, but {name} has a loop of its own. Draw candidates with its "
            "own `generate` and select with `hf_itp.get_strategy(...).select(rewards)`."
        )
    if tuple(model.output_modalities) != ("text",):
        raise UnsupportedModelError(
            f"`strategy` selects among texts, but {name} generates {', '.join(model.output_modalities)}. Use a policy "
            "that generates text."
        )
    _check_adapters(model)
    if model.generation_config is not None:
        check_settings(
            model.generation_config, getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
        )


def _check_adapters(model: Any) -> None:
    given: set[str] = set()
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if found := _PER_ROW_ADAPTERS & set(getattr(hook, "keywords", {})):
                given |= found
                # peft leaves its hooks in the model when their call fails, as this one will.
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    if given:
        names = ", ".join(f"`{name}`" for name in sorted(given))
        raise ArgumentError(
            f"{names} must be absent with `strategy`: peft expects one entry per row of the batch, and a pool has "
            "other rows. Call `generate` once per adapter, after model.set_adapter(...)."
        )


def check_generation_config(config: GenerationConfig, num_candidates: int) -> None:
    """
    Raise `ArgumentError` if the settings ask for something other than independent samples, or hold a NaN.
    """
    check_settings(config)
    for name, off in _OTHER_DECODING.items():
        value = getattr(config, name, None)
        if value not in off:
            raise ArgumentError(
                f"`{name}` must be off with `strategy`, got {value!r}: candidates are independent samples of the "
                f"policy. Remove `{name}`, or pass strategy=None for that way of decoding."
            )
    if config.cache_implementation in FIXED_CACHES:
        raise ArgumentError(
            f"`cache_implementation` must be a growing cache with `strategy`, got {config.cache_implementation!r}: "
            "rows are copied and dropped. Remove `cache_implementation`."
        )
    for name in _PER_STEP_OUTPUTS:
        if getattr(config, name, None):
            raise ArgumentError(
                f"`{name}` must be off with `strategy`, got True: the results of each step are not kept for "
                f"{num_candidates} candidates. Remove `{name}`, or run the model once on the returned sequences."
            )
    if not config.do_sample and num_candidates > 1:
        raise ArgumentError(
            f"`do_sample` must be True with num_candidates={num_candidates}, got False: all candidates would be "
            "equal. Pass do_sample=True."
        )


def check_cache_implementation(model: Any, config: GenerationConfig) -> None:
    """
    Raise `ArgumentError` for a cache, by its name, that [`check_model_kwargs`] would refuse.

    Comes before transformers makes the cache, which fails with another message without the backend or device.
    """
    if config.cache_implementation == "quantized":
        raise _quantised("QuantizedCache")
    on_cuda = model.device.type == "cuda"
    if config.cache_implementation == "offloaded" and not on_cuda and keeps_keys(DynamicCache(config=model.config)):
        raise _offloaded(model.device)


def check_model_kwargs(model: Any, model_kwargs: dict[str, Any]) -> None:
    """
    Raise unless a pool can be drawn for the inputs.

    Raises:
        `ArgumentError`: If an input does not allow it.
        `UnsupportedModelError`: If the host libraries would leave out a part of the policy.
    """
    if forgets_virtual_tokens(model, model_kwargs):
        raise UnsupportedModelError(
            f"`strategy` needs the policy as it was trained, but the installed peft loses its virtual tokens under "
            f"transformers {transformers.__version__}, which plain `generate` does not report. Install "
            "transformers<5.24, or a peft that asks for `cache` where this one asks for `past_key_values`."
        )
    for name, value in model_kwargs.items():
        if isinstance(value, Cache):
            _check_cache(name, value, model.device)
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not model.config.is_encoder_decoder and bool((mask[:, -1] == 0).any()):
        row = int((mask[:, -1] == 0).nonzero()[0])
        raise ArgumentError(
            f"`attention_mask` must end in 1 in every row, got 0 in row {row}: a response would continue "
            "padding. Tokenize with padding_side='left'."
        )


def _check_cache(name: str, cache: Cache, device: torch.device) -> None:
    if is_filled(cache):
        raise ArgumentError(
            f"`{name}` must be absent or empty with `strategy`, got one that holds tokens, which copying rows would "
            "overwrite. Pass the whole prompt instead."
        )
    if is_quantized(cache):
        raise _quantised(type(cache).__name__)
    if is_offloaded(cache) and device.type != "cuda" and keeps_keys(cache):
        raise _offloaded(device)


def _quantised(cache: str) -> ArgumentError:
    return ArgumentError(
        f"`cache_implementation` must keep full precision with `strategy`, got a {cache}: one response would round "
        "another's. Remove `cache_implementation`: a prompt's keys and values are kept once for all its candidates."
    )


def _offloaded(device: torch.device) -> ArgumentError:
    return ArgumentError(
        "`cache_implementation` must stay on the device with `strategy`, got an offloaded cache, which transformers "
        f"only has for CUDA devices, and the policy is on {device.type!r}. Remove `cache_implementation`."
    )
