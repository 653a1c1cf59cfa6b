"""
The tokenizer of a policy in memory: the one saved beside its weights, at the same commit.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hf_itp.errors import ItpWarning, LoadError
from hf_itp.models.origins import Origin, adapter_origins, folder_state, origin_of, token_of

_FILES = ("tokenizer_config.json", "tokenizer.json")
_MAX_LOADED = 8

_loaded: OrderedDict[Hashable, PreTrainedTokenizerBase] = OrderedDict()
_loading = threading.Lock()


def policy_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    """
    Return the tokenizer saved beside the policy: an adapter's if it brings one, else its base model's.

    Loads it once per place, commit and, for a folder, state of its files. Runs no code that a tokenizer brings.

    Raises:
        `LoadError`: If there is none, or several. The remedy is to pass `tokenizer`.
    """
    remedy = "Pass tokenizer=... to generate."
    origin = tokenizer_origin(model, "`tokenizer` is needed to read the responses", remedy)
    try:
        return tokenizer_of(origin, token_of(model))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"`tokenizer` is needed to read the responses, and none loads from {origin.name!r}. {remedy}"
        ) from error


def tokenizer_origin(model: Any, rule: str, remedy: str) -> Origin:
    """
    Return where a loaded model's tokenizer lies: with the active adapter if that brings one, else with the weights.

    Args:
        model (`PreTrainedModel`): Policy or reward model.
        rule (`str`): Why it is needed, for errors.
        remedy (`str`): What to do instead, for errors.

    Raises:
        `LoadError`: If the model was not loaded from anywhere, or it cannot be told from where.
    """
    token = token_of(model)
    try:
        own = {origin for origin in adapter_origins(model) if origin is not None and brings_tokenizer(origin, token)}
    except OSError as error:
        raise LoadError(f"{rule}, but the adapter's files cannot be read ({error}). {remedy}") from error
    if len(own) > 1:
        names = ", ".join(sorted(origin.name for origin in own))
        raise LoadError(f"{rule}, but the active adapters bring several ({names}). {remedy}")
    origin = next(iter(own), None) or origin_of(model)
    if origin is None:
        raise LoadError(f"{rule}, and {type(model).__name__} was not loaded from anywhere. {remedy}")
    if len(origin.candidates) > 1:
        raise LoadError(
            f"{rule}, but {origin.name!r} is in the cache at {len(origin.candidates)} commits, and a model loaded "
            f"before `import hf_itp` does not record its own. {remedy}"
        )
    return origin


def clear_loaded_tokenizers() -> None:
    """Forget the tokenizers that [`policy_tokenizer`] loaded."""
    with _loading:
        _loaded.clear()


def tokenizer_of(origin: Origin, token: str | bool | None = None) -> PreTrainedTokenizerBase:
    """
    Return the tokenizer of a folder or a commit, loaded once. All callers share the object: do not change it.

    Raises:
        `OSError`, `ValueError`: If there is none, or it brings code.
    """
    # A subfolder of weights may have the tokenizer too, or not.
    subfolder = origin.subfolder if origin.subfolder and _holds(origin, origin.subfolder, token) else ""
    key = (origin, subfolder, folder_state(str(Path(origin.name) / subfolder)))
    # Held while loading, so that concurrent threads load a tokenizer once.
    with _loading:
        if key not in _loaded:
            options = origin.options() | ({} if token is None else {"token": token})
            if subfolder:
                options["subfolder"] = subfolder
            _loaded[key] = AutoTokenizer.from_pretrained(origin.name, trust_remote_code=False, **options)
        _loaded.move_to_end(key)
        while len(_loaded) > _MAX_LOADED:
            _loaded.popitem(last=False)
        return _loaded[key]


def brings_tokenizer(adapter: Origin, token: str | bool | None = None) -> bool:
    """Return whether a tokenizer lies beside an adapter; warn if only the Hub could tell and cannot be reached."""
    return any(_holds(adapter, subfolder, token) for subfolder in {adapter.subfolder, ""})


def _holds(origin: Origin, subfolder: str, token: str | bool | None) -> bool:
    options = origin.options() | ({} if token is None else {"token": token})
    found = [
        cached_file(origin.name, file, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **options)
        for file in _FILES
    ]
    if not any(found) and not Path(origin.name).is_dir() and not _known_to_lack(origin, subfolder):
        warnings.warn(
            f"{origin.name!r} may bring a tokenizer of its own, which only the Hub can tell; the base model's is "
            "used. Pass tokenizer=... to be sure.",
            ItpWarning,
            stacklevel=2,
        )
    return any(found)


def _known_to_lack(origin: Origin, subfolder: str) -> bool:
    """Return whether the cache remembers that the Hub has no such files."""
    found = [
        try_to_load_from_cache(
            origin.name, f"{subfolder}/{file}".strip("/"), cache_dir=origin.cache_dir, revision=origin.commit
        )
        for file in _FILES
    ]
    return None not in found
