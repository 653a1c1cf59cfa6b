"""
What decides a draw, as JSON: settings, tokenizers, chat templates, and objects of transformers that process logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from hf_itp.checks import as_number, check_number
from hf_itp.errors import ArgumentError

# Of a processor or criterion, what says the same as another attribute, or takes part in no draw.
_DERIVED = {"StopStringCriteria": {"token_list", "token_indices", "strings", "embedding_vec", "maximum_token_len"}}
# The state a fast tokenizer is left in by its last call.
_STATE = ("padding", "truncation")
_ATTRIBUTES = ("split_special_tokens", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")


def as_json(name: str, value: Any) -> Any:
    """
    The value as JSON gives it back.

    Raises:
        `ArgumentError`: If it is none, a number that is no number among it; names the setting.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if as_number(value) is not None:
        return check_number(name, value, "Correct or remove it.")
    if isinstance(value, torch.Tensor):
        return as_json(name, value.tolist())
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: as_json(name, item) for key, item in sorted(value.items())}
        return sorted([as_json(name, key), as_json(name, item)] for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(as_json(name, item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [as_json(name, item) for item in value]
    if hasattr(value, "to_dict") and type(value).__module__.startswith("transformers."):
        return as_json(name, value.to_dict())
    raise ArgumentError(
        f"`{name}` must be a value that JSON can hold, so that it can be recorded and compared, got {value!r:.80} of "
        f"type {type(value).__name__}. Pass a number, text, list or dict."
    )


def plain_number(value: Any) -> Any:
    """A number of numpy as Python's, which is what transformers looks for; anything else as it is."""
    return value.item() if isinstance(value, np.number) else value


def recorded_object(argument: str, value: Any) -> dict[str, Any]:
    """
    Class and settings of a logits processor or stopping criterion of transformers.

    Raises:
        `ArgumentError`: If it is of a class of one's own, or has settings that cannot be recorded.
    """
    kind = type(value)
    name = f"{argument}: {kind.__name__}"
    if not kind.__module__.startswith("transformers.") or kind.__name__ in (
        "MaxTimeCriteria",
        "PrefixConstrainedLogitsProcessor",
    ):
        raise ArgumentError(
            f"`{argument}` must hold objects whose effect can be recorded and compared, got a {kind.__name__}: what "
            "it does today need not be what it does when rollouts are drawn or a run is taken up. Use settings of "
            "generate, or classes of transformers with plain settings."
        )
    derived = _DERIVED.get(kind.__name__, set())
    return {
        "class": kind.__name__,
        **{
            key: tokenizer_identity(item) if hasattr(item, "get_vocab") else as_json(f"{name}.{key}", item)
            for key, item in sorted(vars(value).items())
            if key not in derived
        },
    }


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of a processor; a tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer) if isinstance(tokenizer, ProcessorMixin) else tokenizer


def template_fingerprint(tokenizer: Any) -> str | None:
    """A hash of the chat template, `None` without one."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else fingerprint(as_json("chat_template", template))


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """
    Where a tokenizer (or that of a processor) came from, and a fingerprint of how it turns text into tokens and back.
    Padding is not part of it: nothing that is drawn depends on it.
    """
    tokenizer = text_tokenizer(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = {name: part for name, part in json.loads(backend.to_str()).items() if name not in _STATE}
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    content["attributes"] = {name: getattr(tokenizer, name, None) for name in _ATTRIBUTES}
    content["special"] = sorted({str(token) for token in tokenizer.all_special_tokens})
    return {
        "name": tokenizer.name_or_path or "",
        "revision": tokenizer.init_kwargs.get("_commit_hash"),
        "fingerprint": fingerprint(content),
    }


def fingerprint(content: Any) -> str:
    """A hash of what JSON can hold; of anything else, of how it shows itself."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=repr)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
