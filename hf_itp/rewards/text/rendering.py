"""
Prompts and responses as the chat or the text a reward model was trained to read.

Knows nothing of tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.rewards.base import Prompt


def transcript(prompt: Prompt) -> str:
    r"""
    Return a prompt as plain text, for reward models without a chat template.

    A single user message becomes its content, so that a one-turn chat and the plain question read the same. A longer
    chat becomes `Role: content` turns with an empty line between them.

    Args:
        prompt (`str` or `list[dict]`): Text, or messages with `role` and `content`.

    Raises:
        `ArgumentError`: If the chat is empty, a message lacks `role` or `content`, or calls tools, or a content is not
            text.

    Examples:

    ```python
    >>> transcript([{"role": "user", "content": "Why is the sky blue?"}])
    'Why is the sky blue?'
    >>> transcript([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    'System: Be brief.\n\nUser: Why?'

    ```
    """
    messages = as_messages(prompt)
    texts = [text_of(message, position) for position, message in enumerate(messages)]
    if len(messages) == 1 and messages[0]["role"] == "user":
        return texts[0]
    turns = zip(messages, texts, strict=True)
    return "\n\n".join(f"{message['role'].capitalize()}: {text}" for message, text in turns)


def text_of(message: dict[str, Any], position: int) -> str:
    """
    Return the text of a message.

    Raises:
        `ArgumentError`: If it has none, or calls tools.
    """
    for field in ("tool_calls", "function_call"):
        if message.get(field):
            raise ArgumentError(
                f"Message {position} of a chat must be text for a reward model without a chat template, got one with "
                f"`{field}`, which plain text cannot show. Set `tokenizer.chat_template`, or pass a reward function "
                "of your own."
            )
    if not isinstance(message.get("content"), str):
        raise ArgumentError(
            f"`content` of message {position} of a chat must be text, got {message.get('content')!r}. Write its text "
            "into `content`."
        )
    return message["content"]


def conversation(prompt: Prompt, response: str) -> list[dict[str, Any]]:
    """
    Return the prompt's messages with the response as the assistant's turn.

    If the chat ends in an assistant message, the policy continued it, so the response is the rest of that message.
    Messages keep all their fields.

    Examples:

    ```python
    >>> conversation([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}], " 4.")[1:]
    [{'role': 'assistant', 'content': 'It is 4.'}]

    ```
    """
    messages = as_messages(prompt)
    if messages[-1]["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": response}]
    begun = messages.pop()
    return [*messages, {**begun, "content": (begun.get("content") or "") + response}]


def fold_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    r"""
    Move system messages to the beginning of the first user turn, for templates without a system role.

    Examples:

    ```python
    >>> fold_system([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    [{'role': 'user', 'content': 'Be brief.\n\nWhy?'}]

    ```
    """
    instructions = [message.get("content") or "" for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if not others or others[0]["role"] != "user":
        return [{"role": "user", "content": "\n\n".join(instructions)}, *others]
    first = {**others[0], "content": "\n\n".join([*instructions, others[0].get("content") or ""])}
    return [first, *others[1:]]


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """
    Return the prompt as checked messages, copied deeply; text is one user message.

    Messages keep all their fields for the chat template: tool calls, names, a `content` of `None`, or none at all. A
    content in parts becomes their text.

    Examples:

    ```python
    >>> as_messages("Why is the sky blue?")
    [{'role': 'user', 'content': 'Why is the sky blue?'}]

    ```
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, (list, tuple)):
        raise ArgumentTypeError(
            f"A prompt must be text or a list of messages, got a {type(prompt).__name__}. Pass a string or a "
            'chat such as [{"role": "user", "content": "..."}].'
        )
    if not prompt:
        raise ArgumentError("A chat must hold at least one message, got an empty one. Add a user message.")
    return [_checked_message(message, position) for position, message in enumerate(prompt)]


def _checked_message(message: object, position: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ArgumentTypeError(
            f"Message {position} of a chat must be a dict with `role` and `content`, got a "
            f"{type(message).__name__}. For several prompts pass one chat per prompt."
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise ArgumentError(
            f"Message {position} of a chat must have a `role`, got only {sorted(map(str, message))}. Add "
            '"role": "user".'
        )
    checked = copied(message)
    if isinstance(content, (list, tuple)):
        checked["content"] = _text_parts(content, position)
    elif not isinstance(content, (str, type(None))):
        raise ArgumentError(
            f"`content` of message {position} of a chat must be text, got {content!r}. Write its text into `content`."
        )
    return checked


def _text_parts(parts: list | tuple, position: int) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ArgumentError(
                f"`content` of message {position} of a chat must hold text only for a text reward model, got a part "
                f"of type {kind!r}. Pass a reward function of your own for such prompts."
            )
    return "".join(part["text"] for part in parts)


def copied(value: Any) -> Any:
    """Copy lists and dicts deeply; anything else they hold, such as a picture, is shared."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value
