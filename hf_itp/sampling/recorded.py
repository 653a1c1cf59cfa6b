"""
Record what decides a draw as JSON (settings, tokenizers, chat templates, objects that process logits), and compare two
such records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from hf_itp.arrays import as_number
from hf_itp.checks import check_number
from hf_itp.errors import ArgumentError
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards.base import Prompt

# Attributes of a processor or criterion that follow from others, or change no draw.
_DERIVED = {"StopStringCriteria": {"token_list", "token_indices", "strings", "embedding_vec", "maximum_token_len"}}
# The state a fast tokenizer is left in by its last call.
_STATE = ("padding", "truncation")
_ATTRIBUTES = ("split_special_tokens", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")


def as_json(name: str, value: Any) -> Any:
    """
    Return the value as JSON gives it back.

    Raises:
        `ArgumentError`: If JSON cannot hold it, or a number in it is not finite; names the setting.
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
    """Return numpy's numbers as Python's, which transformers looks for, and anything else as it is."""
    return value.item() if isinstance(value, np.number) else value


def recorded_object(argument: str, value: Any) -> dict[str, Any]:
    """
    Return class and settings of a logits processor or stopping criterion of transformers.

    Raises:
        `ArgumentError`: If its class is not from transformers, or its effect cannot be recorded.
    """
    kind = type(value)
    name = f"{argument}: {kind.__name__}"
    if not kind.__module__.startswith("transformers.") or kind.__name__ in (
        "MaxTimeCriteria",
        "PrefixConstrainedLogitsProcessor",
    ):
        raise ArgumentError(
            f"`{argument}` must hold objects whose effect can be recorded and compared, got a {kind.__name__}, which "
            "may act differently when rollouts are drawn or a run is resumed. Use settings of generate, or classes "
            "of transformers with plain settings."
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
    """Return the tokenizer of a processor; a tokenizer as it is."""
    return getattr(tokenizer, "tokenizer", tokenizer) if isinstance(tokenizer, ProcessorMixin) else tokenizer


def template_fingerprint(tokenizer: Any) -> str | None:
    """Return a hash of the chat template, `None` without one."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else fingerprint(as_json("chat_template", template))


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """
    Return where a tokenizer (or a processor's) came from, and a fingerprint of how it turns text into tokens and back.

    Padding is not part of the fingerprint: no response depends on it.
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
    """Return a hash of the content as JSON, with the `repr` of what JSON cannot hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=repr)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prompts: Sequence[Prompt] | None = None
) -> list[tuple[str, Any, Any]]:
    """
    Return where two recorded draws differ: name and both values.

    Of the policies only dtype and adapters are compared; the identity of their weights decides if they are the same.

    Args:
        prompts (`list`, *optional*): Compare only these, of the arguments of single prompts.
    """
    found: list[tuple[str, Any, Any]] = []

    def compare(prefix: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Sequence[str]) -> None:
        found.extend(
            (prefix + name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)
        )

    ours, theirs = one["settings"], other["settings"]
    compare("", ours, theirs, sorted({*ours, *theirs}))
    compare("", one, other, ["logits_processor", "stopping_criteria"])
    if one["chat_template"] and other["chat_template"]:
        compare("chat_template ", one["chat_template"], other["chat_template"], ["fingerprint"])
        ours, theirs = one["chat_template"]["arguments"], other["chat_template"]["arguments"]
        compare("chat_template_kwargs ", ours, theirs, sorted({*ours, *theirs}))
        single = {name for draw in (one, other) for name in draw["chat_template"].get("of_prompts") or {}}
        listed = sorted(single if prompts is None else single.intersection(map(prompt_fingerprint, prompts)))
        ours, theirs = (_arguments_of_prompts(draw["chat_template"], listed) for draw in (one, other))
        compare("chat_template_kwargs of prompt ", ours, theirs, listed)
    ours, theirs = ({"reward_view": draw.get("reward_view", "full")} for draw in (one, other))
    compare("", ours, theirs, ["reward_view"])
    compare("tokenizer ", one["tokenizer"], other["tokenizer"], ["fingerprint"])
    compare("policy ", one["policy"], other["policy"], ["dtype", "adapters"])
    return found


def _arguments_of_prompts(template: Mapping[str, Any], listed: Sequence[str]) -> dict[str, str]:
    """Return the fingerprints of the template's arguments for prompts; the common ones for those without their own."""
    own, common = template.get("of_prompts") or {}, fingerprint(template["arguments"])
    return {name: own.get(name, common) for name in listed}
