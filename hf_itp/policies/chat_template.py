"""
Chats as a policy reads them: the arguments of its chat template, checked, and the tokens it makes of a chat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from hf_itp.checks import as_list
from hf_itp.errors import ArgumentError, ArgumentTypeError, LoadError
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.text.context import CONTEXT, checked_context

TemplateArguments = dict[str, Any]
"""Arguments of a chat template by name, `tools` and `documents` among them."""

COLUMNS = ("chat_template_kwargs", *CONTEXT)
"""Columns of a data set that are arguments of the chat template, as in TRL's conversational data sets."""

# What a checkpoint's template raises: it may refuse a role as well as try what its sandbox forbids.
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)

# Parameters of `apply_chat_template` that decide what it returns, which is decided here.
_OURS = frozenset({
    "add_generation_prompt", "conversation", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "tokenize",
})  # fmt: skip
# Its other parameters: no variables of a template.
_TOKENIZING = frozenset({
    "max_length", "processor_kwargs", "sanitize_control_tokens", "tokenizer_kwargs", "truncation",
})  # fmt: skip
_ITS_OWN = _TOKENIZING | {"chat_template", "continue_final_message", *CONTEXT}
_EXAMPLE = "Pass e.g. {'enable_thinking': False}."


def template_arguments(
    chat_template_kwargs: Mapping[str, Any] | None = None, tools: Any = None, documents: Any = None
) -> TemplateArguments:
    """
    Return the arguments of a chat template in one dict, tools as JSON schemas.

    Args:
        chat_template_kwargs (`dict`, *optional*): Variables of the template, e.g. `{"enable_thinking": False}`; may
            hold `tools` and `documents`.
        tools (`list`, *optional*): Functions the policy may call, or their JSON schemas.
        documents (`list[dict]`, *optional*): Texts to answer from.

    Raises:
        `ArgumentTypeError`: If one of them has another form.
        `ArgumentError`: If one is given twice, or would change what is rendered here.

    Examples:

    ```python
    >>> template_arguments({"enable_thinking": False}, documents=[{"title": "Rivers", "text": "..."}])
    {'enable_thinking': False, 'documents': [{'title': 'Rivers', 'text': '...'}]}

    ```
    """
    given = chat_template_kwargs if chat_template_kwargs is not None else {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ArgumentTypeError(f"`chat_template_kwargs` must be a dict by name, got {given!r:.80}. {_EXAMPLE}")
    if ours := sorted(_OURS & given.keys()):
        raise ArgumentError(
            f"`chat_template_kwargs` must hold variables of the chat template, got {ours[0]!r}, which is set here. "
            f"Remove it. {_EXAMPLE}"
        )
    arguments = {name: value for name, value in given.items() if name not in CONTEXT}
    for name, value in (("tools", tools), ("documents", documents)):
        if value is not None and given.get(name) is not None:
            raise ArgumentError(
                f"`{name}` must be given once, got it by itself and in `chat_template_kwargs`. Leave one of them out."
            )
        checked = checked_context(name, given.get(name) if value is None else value)
        if checked is not None:
            arguments[name] = checked
    return arguments


def arguments_of_prompts(
    prompts: Sequence[Prompt],
    chat_template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    tools: Any = None,
    documents: Any = None,
) -> list[TemplateArguments]:
    """
    Return the arguments of the chat template for each prompt.

    Args:
        chat_template_kwargs (`dict` or `list[dict]`, *optional*): One dict for all, or one per prompt. That of a
            prompt overrides `tools` and `documents`.
        tools, documents (*optional*): As in [`template_arguments`], for all prompts.

    Raises:
        `ArgumentError`: As [`template_arguments`], or if there is not one dict per prompt.
    """
    if chat_template_kwargs is None or isinstance(chat_template_kwargs, Mapping):
        return [template_arguments(chat_template_kwargs, tools, documents)] * len(prompts)
    of_prompts = as_list(chat_template_kwargs)
    if of_prompts is None or len(of_prompts) != len(prompts):
        raise ArgumentError(
            f"`chat_template_kwargs` must be one dict, or one per prompt ({len(prompts)}), got "
            f"{chat_template_kwargs!r:.80}. {_EXAMPLE}"
        )
    common = template_arguments(None, tools, documents)
    return [common | template_arguments(own) for own in of_prompts]


def common_and_own(
    prompts: Sequence[Prompt],
    chat_template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    tools: Any = None,
    documents: Any = None,
) -> dict[str, dict[str, Any]]:
    """
    Return the arguments of the chat template as [`~sampling.description.DrawDescription`] takes them: those of all
    prompts, and those of single ones. The arguments are those of [`arguments_of_prompts`].
    """
    if chat_template_kwargs is None or isinstance(chat_template_kwargs, Mapping):
        return {"chat_template_kwargs": template_arguments(chat_template_kwargs, tools, documents), "of_prompts": {}}
    of_prompts = arguments_of_prompts(prompts, chat_template_kwargs)
    common = template_arguments(None, tools, documents)
    return {"chat_template_kwargs": common, "of_prompts": by_prompt(prompts, of_prompts)}


def arguments_in_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, TemplateArguments]:
    """
    Return the arguments in the columns [`COLUMNS`] of a data set, by the fingerprint of the row's `prompt`.

    Data sets fill in `None` for what only other rows have; such entries are left out.

    Raises:
        `ArgumentError`: If a row holds something else there, or equal prompts have different arguments.
    """
    arguments = [arguments_in_row(row, number) for number, row in enumerate(rows)]
    return by_prompt([row["prompt"] for row in rows], arguments)


def arguments_in_row(row: Mapping[str, Any], number: int) -> TemplateArguments:
    """Return the arguments in the columns [`COLUMNS`] of one row; an error names its number."""
    try:
        return template_arguments(*(_read(row.get(name)) for name in COLUMNS))
    except (ArgumentError, ArgumentTypeError) as error:
        raise ArgumentError(f"Row {number} of the data must hold template arguments. {error}") from error


def list_in_file(file: str | Path | None, option: str) -> list[Any] | None:
    """
    Return the list in a file of JSON; `None` without a file.

    Args:
        option (`str`): Where the file was named, for the messages.

    Raises:
        `LoadError`: If it cannot be read.
        `ArgumentError`: If it holds no list.
    """
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"`{option}` must be readable, got {file} ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise ArgumentError(f"`{option}` must be a file of JSON, got {file} ({error}). Correct it.") from error
    if not isinstance(content, list):
        raise ArgumentError(f"`{option}` must hold a list, got {content!r:.60} in {file}. Put brackets around it.")
    return content


def by_prompt(prompts: Sequence[Prompt], arguments: Sequence[TemplateArguments]) -> dict[str, TemplateArguments]:
    """
    Return the arguments by the fingerprint of their prompt, without those that have none.

    Raises:
        `ArgumentError`: If equal prompts have different arguments: a prompt has one set of references.
    """
    found: dict[str, TemplateArguments] = {}
    for place, (prompt, own) in enumerate(zip(prompts, arguments, strict=True)):
        if found.setdefault(prompt_fingerprint(prompt), own) != own:
            raise ArgumentError(
                f"`chat_template_kwargs` (with `tools` and `documents`) must be the same wherever a prompt is, got "
                f"{own!r:.60} for prompt {place}, and other ones for an equal prompt before it. Make the prompts "
                "differ, or leave one of them out."
            )
    return {fingerprint: own for fingerprint, own in found.items() if own}


def context_columns(arguments: Sequence[TemplateArguments]) -> dict[str, list]:
    """Return the columns `tools` and `documents` for a reward, one entry per prompt, where any prompt has some."""
    columns = {name: [own.get(name) for own in arguments] for name in CONTEXT}
    return {name: column for name, column in columns.items() if any(column)}


def check_template_takes(tokenizer: Any, prompts: Sequence[Prompt], arguments: Sequence[TemplateArguments]) -> None:
    """
    Refuse arguments that the policy would not see: a chat template leaves out silently what it does not know.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): The policy's.
        prompts, arguments: Prompts, and the arguments of each.

    Raises:
        `ArgumentError`: If there is no template, a prompt is a text, the template does not use a variable, or a chat
            is rendered alike with and without its tools or documents.
    """
    compared: set[str] = set()
    for place, (prompt, own) in enumerate(zip(prompts, arguments, strict=True)):
        # Equal chats with equal arguments need one rendering.
        if not own or (key := repr((prompt, own))) in compared:
            continue
        compared.add(key)
        first = "tools" if "tools" in own else next(iter(own))
        if isinstance(prompt, str):
            raise ArgumentError(
                f"`{first}` must come with chats, got prompt {place} as text ({prompt!r:.60}), which no template "
                "renders. Pass [{'role': 'user', 'content': ...}], or leave it out."
            )
        check_variables(tokenizer, own)
        for name in CONTEXT:
            rest = {key: value for key, value in own.items() if key != name}
            if name in own and rendered(tokenizer, prompt, own) == rendered(tokenizer, prompt, rest):
                raise ArgumentError(
                    f"`{name}` must be written by the policy's chat template, got one that renders prompt {place} "
                    "alike with and without. Write them into a system message, or choose a policy whose template "
                    f"knows {name}."
                )


def check_variables(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """
    Refuse variables that do not occur in the policy's chat template, which would ignore them.

    Raises:
        `ArgumentError`: If there is no template, or one does not occur; names it.
    """
    if not arguments:
        return
    template = arguments.get("chat_template") or tokenizer.chat_template
    if template is None:
        raise ArgumentError(
            f"`chat_template_kwargs` must come with a chat template, got {sorted(arguments)} and a tokenizer without "
            "one. Set `tokenizer.chat_template`, or leave them out."
        )
    named = template.values() if isinstance(template, Mapping) else [template]
    text = "\n".join(map(str, named))
    for name in arguments:
        if name not in _ITS_OWN and not re.search(rf"\b{re.escape(name)}\b", text):
            raise ArgumentError(
                f"`chat_template_kwargs` must hold variables of the policy's chat template, got {name!r}, which does "
                "not occur in it. Correct or remove the name."
            )


def rendered(tokenizer: Any, chat: Sequence[dict], arguments: Mapping[str, Any]) -> str:
    """
    Return a chat as the text that the policy continues.

    Raises:
        `ArgumentError`: If the template refuses the chat.
    """
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **_opened(arguments)))
    except TEMPLATE_ERRORS as error:
        raise refusal(error) from error


def encoded_chats(
    tokenizer: Any, chats: Sequence[Sequence[dict]], arguments: Sequence[Mapping[str, Any]], **form: Any
) -> Any:
    """
    Return chats as tokens, the assistant's turn opened.

    Args:
        arguments: Those of the template for each chat.
        form: `padding` and `return_tensors` of transformers.

    Raises:
        `ArgumentError`: If the template refuses a chat.
    """
    first = arguments[0]
    if all(own == first for own in arguments):
        try:
            return tokenizer.apply_chat_template(chats, return_dict=True, tokenize=True, **_opened(first), **form)
        except TEMPLATE_ERRORS as error:
            raise refusal(error) from error
    if isinstance(tokenizer, ProcessorMixin) or any(not _TOKENIZING.isdisjoint(own) for own in arguments):
        raise ArgumentError(
            f"`chat_template_kwargs` must be the same for all chats of a call with a processor, or with any of "
            f"{', '.join(sorted(_TOKENIZING))}, got different ones. Make one call for each."
        )
    texts = [rendered(tokenizer, chat, own) for chat, own in zip(chats, arguments, strict=True)]
    return tokenizer(texts, add_special_tokens=False, **form)


def prompt_ids(tokenizer: Any, prompt: Prompt, **arguments: Any) -> list[int]:
    """
    Return the tokens of one prompt: of a chat by the chat template with the assistant's turn opened, of a text as
    it is.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): The policy's.
        arguments: Those of the chat template.

    Raises:
        `ArgumentError`: If a chat has no chat template that takes it, or the prompt has no tokens.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(text=[prompt])["input_ids"][0])
    elif (arguments.get("chat_template") or tokenizer.chat_template) is None:
        raise ArgumentError(
            f"`prompts` must be texts, since the tokenizer has no chat template, got {prompt!r:.80}. Render the chats "
            "or set `tokenizer.chat_template`."
        )
    else:
        ids = list(encoded_chats(tokenizer, [prompt], [arguments])["input_ids"][0])
    if not ids:
        raise ArgumentError(f"`prompts` must hold at least one token each, got {prompt!r}. Leave it out.")
    return ids


def refusal(error: BaseException) -> ArgumentError:
    """Return the error for a chat that the policy's chat template refuses."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ArgumentError(
        f"`prompts` must hold chats that the policy's chat template renders, got a refusal: {reason}. Change the "
        "messages, or pass the prompts as text."
    )


def _opened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the text ends where the policy goes on."""
    return {**arguments, "add_generation_prompt": not arguments.get("continue_final_message")}


def _read(value: Any) -> Any:
    """Return an entry of a data set, which may be JSON text, without what the data set filled in."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value  # refused by its own rule
    return _without_none(value)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
