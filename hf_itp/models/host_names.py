"""
Names in transformers and peft that differ between the releases this package supports. Each is looked up only here.
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
Names of the cache argument, newest first: `cache` from transformers 5.24 on; before that `past_key_values`, and
`cache_params` in state-space models. Remove the last two once 5.24 is the oldest supported release.
"""

# transformers 5.24 put a base class above `QuantizedLayer`. Remove once 5.24 is the oldest supported release.
QUANTIZED_LAYER: type = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)

# Only transformers 5.17 loads adapters differently: it asks their repository for a configuration at the revision of
# their base model, and looks for their own head under a name that their file does not hold. Remove the workarounds for
# both once it is no longer supported.
ADAPTERS_OF_5_17: bool = Version(transformers.__version__) < Version("5.18")


def cache_entry(arguments: Mapping[str, Any]) -> tuple[str, Cache] | None:
    """
    Return the name under which keyword arguments or a model's outputs hold a cache, and the cache; `None` if none.

    Looks at the type of the values, so it also finds a cache under a future name.
    """
    return next(((name, value) for name, value in arguments.items() if isinstance(value, Cache)), None)


def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name under which `function` (a `forward` or `prepare_inputs_for_generation`) takes a cache."""
    known = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[0])


def forgets_virtual_tokens(model: Any, arguments: Mapping[str, Any]) -> bool:
    """
    Return whether peft, which puts virtual tokens before the prompt, misses the cache that `generate` has prepared.

    peft up to 0.21.2 looks only for `past_key_values`. Under transformers 5.24 it then silently drops a prefix, and
    inserts a soft prompt again at every step. Remove this once the oldest supported peft looks for `cache`.
    """
    prepare = vars(model).get("prepare_inputs_for_generation")
    config: Any = getattr(getattr(prepare, "__self__", None), "active_peft_config", None)
    if prepare is None or not getattr(config, "is_prompt_learning", False):
        return False
    entry = cache_entry(arguments)
    # A soft prompt is part of the input, so it is right without a cache; a prefix is itself a cache.
    name = cache_argument(type(model).forward) if entry is None else entry[0]
    keeps_keys = getattr(config.peft_type, "value", config.peft_type) in ("PREFIX_TUNING", "CARTRIDGE")
    return (entry is not None or keeps_keys) and name not in prepare.__func__.__code__.co_consts
