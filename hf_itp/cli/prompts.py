"""Read prompts from arguments, a file or stdin. Errors name the place of what cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_itp.cli.streams import decoded, stdin_text
from hf_itp.errors import ArgumentError, ItpWarning, LoadError

if TYPE_CHECKING:
    from hf_itp.rewards.base import Prompt

_ROW = 'Write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]} on each line.'


def read_prompts(arguments: Sequence[str], file: Path | None) -> list[Prompt]:
    """
    Return the prompts of a command: its arguments, a file, or stdin (for the file `-`, or if neither is given).

    A `.jsonl` or `.jsonl.gz` file has a `prompt` (text or messages) or `messages` per line. Any other file is text
    with one prompt per line, kept as it stands without its line break. Stdin is JSON lines if its first character is
    `{`. Blank lines are skipped, those of a text with a warning.

    Raises:
        `ArgumentError`: If there are no prompts, both arguments and a file, or a line that does not parse.
        `LoadError`: If the file cannot be read, or is not UTF-8.
    """
    if arguments and file is not None:
        raise ArgumentError(
            f"Prompts must come from one place, got {len(arguments)} arguments and `--file {file}`. Leave one of them "
            "out."
        )
    prompts: list[Prompt]
    if arguments:
        prompts = [argument_text(prompt, f"Prompt {number}") for number, prompt in enumerate(arguments, start=1)]
        for number, prompt in enumerate(arguments, start=1):
            if not prompt.strip():
                raise ArgumentError(f"Prompt {number} must hold text, got {prompt!r}. Leave it out.")
    elif file is None and sys.stdin.isatty():
        raise ArgumentError("Prompts must be given, got none. Give some as arguments, in `--file`, or on stdin.")
    elif file is None or str(file) == "-":
        text = stdin_text()
        prompts = parse_prompts(text, "stdin", json_lines=text.lstrip().startswith("{"))
    else:
        json_lines = file.name.endswith((".jsonl", ".jsonl.gz"))
        prompts = parse_prompts(_text_of(file), str(file), json_lines=json_lines)
    if not prompts:
        raise ArgumentError(f"`--file` must hold prompts, got none in {file or 'stdin'}. Write one on each line.")
    return prompts


def parse_prompts(text: str, source: str, *, json_lines: bool) -> list[Prompt]:
    """
    Return one prompt per line that is not blank. A text keeps the spaces around it.

    Examples:

    ```python
    >>> parse_prompts("How?\\n  Why?\\n", "stdin", json_lines=False)
    ['How?', '  Why?']
    >>> parse_prompts('{"prompt": "How?"}', "stdin", json_lines=True)
    ['How?']

    ```
    """
    # Not splitlines(), which also cuts at a form feed or U+2028 within a line.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    with_text = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if json_lines:
        return [_prompt_of(line, f"Line {number} of {source}") for number, line in with_text]
    if with_text and (blank := len(lines) - len(with_text)):
        warnings.warn(
            f"Blank lines of {source} are skipped: {blank} of {len(lines)}. Write a prompt of several lines as JSON, "
            "in a .jsonl file.",
            ItpWarning,
            stacklevel=2,
        )
    return [line for _, line in with_text]


def read_columns(file: Path, num_prompts: int) -> dict[str, list[Any]]:
    """
    Return what a file of JSON lines holds beside its prompts, by name: one entry per prompt, `None` if its line has
    none. Other files have no columns, nor has stdin, which cannot be read twice.
    """
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        return {}
    rows = [json.loads(line) for line in _text_of(file).split("\n") if line.strip()]
    assert len(rows) == num_prompts
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "messages"))
    return {name: [row.get(name) for row in rows] for name in names}


def with_system(prompts: Sequence[Prompt], system: str) -> list[Prompt]:
    """
    Put a system message before every chat.

    Raises:
        `ArgumentError`: If a prompt is no chat, or has a system message already.
    """
    message = {"role": "system", "content": argument_text(system, "`--system`")}
    chats: list[Prompt] = []
    for position, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, str):
            raise ArgumentError(
                "`--system` must be left out for a policy that reads plain text, got one without a chat template. "
                "Leave `--system` out."
            )
        if prompt[0]["role"] == "system":
            raise ArgumentError(
                f"Prompt {position} must have no system message beside `--system`, got one. Leave `--system` out, or "
                "remove that message."
            )
        chats.append([message, *prompt])
    return chats


def argument_text(argument: str, place: str) -> str:
    """
    Return a word of the command line as text, read as UTF-8 whatever the locale.

    Raises:
        `ArgumentError`: If its bytes are not UTF-8.
    """
    # Python keeps bytes that the locale cannot decode as lone surrogates, from which they can be restored.
    if any("\udc80" <= letter <= "\udcff" for letter in argument):
        with suppress(UnicodeError):
            return os.fsencode(argument).decode()
    _check_letters(argument, place)
    return argument


def _check_letters(value: Any, place: str) -> None:
    """
    Refuse half a character (a lone surrogate), which no tokenizer reads. Python makes one of an argument that is not
    UTF-8, JSON of half an escape.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        remedy = "Write it in UTF-8, and in JSON with both halves of its escape."
        raise ArgumentError(f"{place} must hold whole characters, got {half!r}. {remedy}") from error


def _text_of(file: Path) -> str:
    name, remedy = f"`--file` {str(file)!r}", "Name a text file in UTF-8, or a .jsonl or .jsonl.gz file."
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LoadError(f"{name} must be readable, got: {reason}. {remedy}") from error
    return decoded(data, name, remedy)


def _prompt_of(line: str, place: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{place} must be JSON, got {error.msg} at column {error.colno}. {_ROW}") from error
    _check_letters(row, place)
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise ArgumentError(f"{place} must be an object with either `prompt` or `messages`, got {line:.60}. {_ROW}")
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, str) and "prompt" in row:
        if not prompt.strip():
            raise ArgumentError(f"{place} must hold text, got an empty `prompt`. {_ROW}")
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(_is_message(message) for message in prompt):
        raise ArgumentError(f"{place} must hold text or a list of messages, got {json.dumps(prompt):.60}. {_ROW}")
    if prompt[-1]["role"] == "assistant":
        raise ArgumentError(
            f"{place} must end with a message to answer, got the assistant's own. End it with the user's."
        )
    return prompt


def _is_message(message: Any) -> bool:
    # Besides a role: text, a list of parts, or something else for the chat template, such as tool calls.
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, (str, list)) or (content is None and bool(set(message) - {"role", "content"}))
