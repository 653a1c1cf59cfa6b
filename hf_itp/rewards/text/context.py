"""
Tools and documents of a chat: what a chat template may write besides the messages.

Knows nothing of tokenizers or models.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema

from hf_itp.checks import as_list
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.rewards.text.rendering import copied

CONTEXT = ("tools", "documents")
"""What a template may write besides the messages: functions to call, and texts to answer from."""

_EXAMPLES = {
    "tools": '[{"type": "function", "function": {"name": ..., "parameters": ...}}], or functions with docstrings',
    "documents": '[{"title": ..., "text": ...}]',
}

Context = dict[str, list[dict]]
"""The tools and documents of one chat; without an entry where there are none."""


def checked_context(name: str, value: Any) -> list[dict] | None:
    """
    Return tools or documents as a list of dicts, `None` if there are none.

    Args:
        name (`str`): `tools` or `documents`, for the messages.
        value: A list of dicts, or of functions as tools, which become JSON schemas as in transformers; or the list as
            JSON text, as data sets of TRL may hold it.

    Raises:
        `ArgumentTypeError`: If it is no such list.
        `ArgumentError`: If the text is no JSON, or a function lacks the docstring or types that describe it.

    Examples:

    ```python
    >>> checked_context("documents", '[{"title": "Rivers", "text": "The Loire is long."}]')
    [{'title': 'Rivers', 'text': 'The Loire is long.'}]

    ```
    """
    remedy = f"Pass {_EXAMPLES[name]}."
    entries = value
    if isinstance(value, str):
        try:
            entries = json.loads(value)
        except ValueError as error:
            raise ArgumentError(
                f"`{name}` must be a list, or one as JSON, got {value!r:.80} ({error}). {remedy}"
            ) from error
    if entries is None:
        return None
    listed = as_list(entries)
    if listed is None:
        raise ArgumentTypeError(f"`{name}` must be a list of dicts, got {value!r:.80}. {remedy}")
    if name == "tools":
        listed = [_schema(tool) if inspect.isfunction(tool) or inspect.ismethod(tool) else tool for tool in listed]
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise ArgumentTypeError(
                f"`{name}` must be a list of dicts, got {entry!r:.80} of type {type(entry).__name__} in it. {remedy}"
            )
    # Llama's templates write an introduction of tools even for an empty list.
    return [copied(entry) for entry in listed] or None


def contexts_of(count: int, columns: Mapping[str, Sequence[Any] | None]) -> list[Context]:
    """
    Return the context of each of `count` chats.

    Args:
        columns (`dict[str, list]`): `tools` and `documents`, each with one entry per chat, or `None`.
    """
    contexts: list[Context] = [{} for _ in range(count)]
    for name in CONTEXT:
        for context, value in zip(contexts, columns.get(name) or [None] * count, strict=True):
            if (checked := checked_context(name, value)) is not None:
                context[name] = checked
    return contexts


def _schema(function: Any) -> dict:
    try:
        return dict(get_json_schema(function))
    except Exception as error:  # transformers has errors of its own for docstrings and for types
        raise ArgumentError(
            f"`tools` must hold functions with a docstring and types for every argument, got `{function.__name__}` "
            f"({error}). Complete them, or pass its JSON schema."
        ) from error
