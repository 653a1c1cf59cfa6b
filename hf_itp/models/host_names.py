"""
Names of the host libraries that differ between the releases this package runs on, each looked up here alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from packaging.version import Version
from transformers import cache_utils
from transformers.cache_utils import Cache

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""
What the cache is called, newest first: `cache` from transformers 5.24 on; before, `past_key_values`, and
`cache_params` in state-space models. The last two go when 5.24 is the oldest release that is supported.
"""

# 5.24 put a base class above `QuantizedLayer`. Goes with the releases before it.
QUANTIZED_LAYER: type = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)

# 5.17 alone loads adapters otherwise: it asks their repository for a configuration at the revision of their base
# model, and looks for their own head under a name that their file does not hold. Both go with it.
ADAPTERS_OF_5_17: bool = Version(transformers.__version__) < Version("5.18")


def cache_entry(arguments: Mapping[str, Any]) -> tuple[str, Cache] | None:
    """
    Under which name keyword arguments or a model's outputs hold a cache, and the cache; `None` if they hold none. By
    the type of the value, so a name of tomorrow is found too.
    """
    return next(((name, value) for name, value in arguments.items() if isinstance(value, Cache)), None)


def cache_argument(function: Callable[..., Any]) -> str:
    """The name under which `function` (a `forward`, or `prepare_inputs_for_generation`) takes a cache."""
    known = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[0])


def forgets_virtual_tokens(model: Any, arguments: Mapping[str, Any]) -> bool:
    """
    Whether peft, which puts its virtual tokens before the prompt, does not find the cache of keyword arguments that
    `generate` has prepared. peft up to 0.21.2 asks for `past_key_values` alone: under transformers 5.24 a prefix is
    then dropped, and a soft prompt put in again at every step, without a word. Goes when the oldest peft that is
    supported asks for `cache`.
    """
    prepare = vars(model).get("prepare_inputs_for_generation")
    config: Any = getattr(getattr(prepare, "__self__", None), "active_peft_config", None)
    if prepare is None or not getattr(config, "is_prompt_learning", False):
        return False
    entry = cache_entry(arguments)
    # A soft prompt is part of the input, so without a cache it is where it belongs; a prefix is itself a cache.
    name = cache_argument(type(model).forward) if entry is None else entry[0]
    keeps_keys = getattr(config.peft_type, "value", config.peft_type) in ("PREFIX_TUNING", "CARTRIDGE")
    return (entry is not None or keeps_keys) and name not in prepare.__func__.__code__.co_consts
