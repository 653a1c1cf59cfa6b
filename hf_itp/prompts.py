"""
Check the prompts that the caller passes for the reward (texts or chats), decode them from the input, tell them apart.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from hashlib import blake2b

from transformers import PreTrainedTokenizerBase

from hf_itp.checks import as_list, must_be
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning
from hf_itp.rewards.base import Prompt

_REMEDY = "Pass one string or one list of {'role': ..., 'content': ...} messages per input row."


def check_prompts(prompts: Sequence[Prompt], num_rows: int | None = None) -> list[Prompt]:
    """
    Return the prompts as a list if each is a string or a non-empty list of messages.

    Raises:
        `ArgumentTypeError`: If a prompt is neither.
        `ArgumentError`: If there are not `num_rows` of them, or a chat is empty.
    """
    listed = as_list(prompts)
    if listed is None:
        raise ArgumentTypeError(must_be("prompts", "a list with one entry per input row", prompts, _REMEDY))
    if num_rows is not None and len(listed) != num_rows:
        raise ArgumentError(f"`prompts` must hold one prompt per input row ({num_rows}), got {len(listed)}. {_REMEDY}")
    for position, prompt in enumerate(listed):
        if isinstance(prompt, str):
            listed[position] = str(prompt)  # a plain `str`, also of numpy's
            continue
        chat = as_list(prompt)
        if chat is None or not all(_is_message(message) for message in chat):
            hint = " A single chat must be wrapped once more: prompts=[chat]." if _is_message(prompt) else ""
            raise ArgumentTypeError(
                f"Prompt {position} in `prompts` must be a text or a chat, got {prompt!r:.80}.{hint} {_REMEDY}"
            )
        if len(chat) == 0:
            raise ArgumentError(f"Prompt {position} in `prompts` must hold a message, got an empty chat. {_REMEDY}")
        listed[position] = chat
    return listed


def decoded_prompts(token_prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Decode the input rows for a reward when no `prompts` were given; warn that a chat loses its structure."""
    warnings.warn(
        "`prompts` was not given, so the reward sees the decoded input: for a chat, the words of its template without "
        "its structure. Pass prompts=[chat, ...] to let the reward model apply its own template.",
        ItpWarning,
        stacklevel=2,
    )
    return list(tokenizer.batch_decode([list(ids) for ids in token_prompts], skip_special_tokens=True))


def prompt_fingerprint(prompt: Prompt) -> str:
    """
    Return a hash that is the same for equal prompts in any process: of a text, or of a chat's roles, contents and
    other fields. Fields that are `None`, as data sets fill them in, do not count.

    Examples:

    ```python
    >>> prompt_fingerprint("Why?") == prompt_fingerprint([{"role": "user", "content": "Why?"}])
    False

    ```
    """
    if isinstance(prompt, str):
        content = json.dumps(["text", prompt])
    else:
        messages = [{key: value for key, value in message.items() if value is not None} for message in prompt]
        if all(message.keys() <= {"role", "content"} for message in messages):
            # Keep this form for calibrations that were saved before other fields counted.
            pairs = [[message.get("role"), message.get("content")] for message in messages]
            content = json.dumps(["chat", pairs], default=str)
        else:
            content = json.dumps(["messages", messages], sort_keys=True, default=str)
    return blake2b(content.encode(), digest_size=16).hexdigest()


def _is_message(message: object) -> bool:
    # Whatever else a message has (content, tool calls, a name) is between the caller and the chat template.
    return isinstance(message, dict) and isinstance(message.get("role"), str)
