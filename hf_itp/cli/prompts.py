"""Prompts from arguments, a file or stdin; what cannot be read is refused with the place it stands at."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_itp.errors import ArgumentError, LoadError

if TYPE_CHECKING:
    from hf_itp.rewards.base import Prompt

_ROW = 'Write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]} on each line.'


def read_prompts(arguments: Sequence[str], file: Path | None) -> list[Prompt]:
    """
    The prompts of one command: its arguments, or a file, or stdin (file `-`, or neither given and stdin no terminal).

    A file is `.jsonl`, or `.jsonl.gz`, with a `prompt` (text or messages) or `messages` a line, or any other text with
    one prompt a line. Stdin is JSON lines if its first character is `{`. Blank lines are skipped.

    Raises:
        `ArgumentError`: If there are no prompts, arguments and a file, or a line that does not parse.
        `LoadError`: If the file cannot be read.
    """
    if arguments and file is not None:
        raise ArgumentError(
            f"Prompts have to come from one place, but {len(arguments)} arguments and `--file {file}` were given. "
            "Leave one of them out."
        )
    prompts: list[Prompt]
    if arguments:
        prompts = list(arguments)
        for position, prompt in enumerate(arguments, start=1):
            if not prompt.strip():
                raise ArgumentError(f"Prompt {position} is empty. Write something in it or leave it out.")
    elif file is None and sys.stdin.isatty():
        raise ArgumentError("There are no prompts. Give some as arguments, in `--file`, or on stdin.")
    elif file is None or str(file) == "-":
        text = sys.stdin.read()
        prompts = parse_prompts(text, "stdin", json_lines=text.lstrip().startswith("{"))
    else:
        json_lines = file.name.endswith((".jsonl", ".jsonl.gz"))
        prompts = parse_prompts(_text_of(file), str(file), json_lines=json_lines)
    if not prompts:
        raise ArgumentError(f"There are no prompts in {file or 'stdin'}. Write one on each line.")
    return prompts


def parse_prompts(text: str, source: str, *, json_lines: bool) -> list[Prompt]:
    """
    One prompt per line that is not blank.

    Examples:

    ```python
    >>> parse_prompts("How?\\n\\nWhy?\\n", "stdin", json_lines=False)
    ['How?', 'Why?']
    >>> parse_prompts('{"prompt": "How?"}', "stdin", json_lines=True)
    ['How?']

    ```
    """
    # Not splitlines(): JSON text may hold separators such as U+2028 as they are.
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    lines_with_text = [(number, line) for number, line in lines if line]
    if not json_lines:
        return [line for _, line in lines_with_text]
    return [_prompt_of(line, f"Line {number} of {source}") for number, line in lines_with_text]


def read_columns(file: Path, num_prompts: int) -> dict[str, list[Any]]:
    """
    What the lines of a file of JSON lines hold beside their prompts, by name: one entry per prompt, `None` where a
    line has none. Nothing of any other file, nor of stdin, which is gone once its prompts are read.
    """
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        return {}
    rows = [json.loads(line) for line in _text_of(file).split("\n") if line.strip()]
    assert len(rows) == num_prompts
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "messages"))
    return {name: [row.get(name) for row in rows] for name in names}


def as_conversations(prompts: Iterable[Prompt], *, has_template: bool, system: str | None) -> list[Prompt]:
    """
    The prompts as the policy is to see them: chats where its tokenizer has a chat template, else text.

    Raises:
        `ArgumentError`: If a chat or a system message meets a policy without a template, or a second system message.
    """
    if not has_template:
        if system is not None:
            raise ArgumentError(
                "`--system` needs a policy with a chat template, but this one reads plain text. Leave `--system` out."
            )
        texts: list[Prompt] = []
        for position, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str):
                raise ArgumentError(
                    f"Prompt {position} is a chat, but the policy reads plain text. Give it as text, or choose a "
                    "policy with a chat template."
                )
            texts.append(prompt)
        return texts
    chats: list[Prompt] = []
    for position, prompt in enumerate(prompts, start=1):
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            if chat[0]["role"] == "system":
                raise ArgumentError(
                    f"Prompt {position} has a system message already. Leave `--system` out, or remove that message."
                )
            chat.insert(0, {"role": "system", "content": system})
        chats.append(chat)
    return chats


def _text_of(file: Path) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LoadError(
            f"`--file` {str(file)!r} could not be read: {reason}. Name a text file in UTF-8, or a .jsonl or .jsonl.gz "
            "file."
        ) from error


def _prompt_of(line: str, place: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{place} is not JSON ({error.msg} at column {error.colno}). {_ROW}") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise ArgumentError(
            f"{place} has to be an object with either `prompt` or `messages`, but is {line:.60}. {_ROW}"
        )
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, str) and "prompt" in row:
        if not prompt.strip():
            raise ArgumentError(f"{place} has an empty `prompt`. {_ROW}")
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(_is_message(message) for message in prompt):
        raise ArgumentError(f"{place} holds neither text nor a list of messages, but {json.dumps(prompt):.60}. {_ROW}")
    if prompt[-1]["role"] == "assistant":
        raise ArgumentError(
            f"{place} ends with the assistant's own message, so there is nothing to answer. End it with the user's."
        )
    return prompt


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )
