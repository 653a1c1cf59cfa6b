"""Arguments of the chat template: files and JSON of the command line, columns of a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from hf_itp.cli.options import drawing
from hf_itp.errors import ArgumentError

Tools = Annotated[
    Path | None,
    drawing(
        "--tools",
        metavar="FILE",
        help="JSON list of what the policy may call, as schemas. A row's own `tools` replace them.",
    ),
]
Documents = Annotated[
    Path | None,
    drawing(
        "--documents",
        metavar="FILE",
        help="JSON list of documents to answer from. A row's own `documents` replace them.",
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    drawing(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Variables of the policy's chat template: '{\"enable_thinking\": false}'. A row's own "
        "`chat_template_kwargs` go before them.",
    ),
]


def template_keywords(
    tools: Path | None,
    documents: Path | None,
    chat_template_kwargs: str | None,
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """
    Return the options as keywords of `Policy.generate`: with the columns `tools`, `documents` or
    `chat_template_kwargs` of a file one dict per prompt, else one for all.

    Raises:
        `ArgumentError`: If an option or a row holds something else.
        `LoadError`: If a file cannot be read.
    """
    from hf_itp.policies.chat_template import COLUMNS, arguments_in_row, list_in_file, template_arguments

    common = template_arguments(
        template_arguments_in(chat_template_kwargs),
        list_in_file(tools, "--tools"),
        list_in_file(documents, "--documents"),
    )
    own = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if any(row.get(name) is not None for row in own for name in COLUMNS):
        return {"chat_template_kwargs": [common | arguments_in_row(row, number) for number, row in enumerate(own)]}
    return {"chat_template_kwargs": common}


def template_arguments_in(given: str | None) -> dict[str, Any]:
    """Return the arguments of a chat template from JSON; raise `ArgumentError` if it is no JSON object."""
    try:
        arguments = {} if given is None else json.loads(given)
    except ValueError as error:
        raise ArgumentError(
            f"`--chat-template-kwargs` must be JSON, got {given!r} ({error}). Put names in double quotes."
        ) from error
    if not isinstance(arguments, dict):
        raise ArgumentError(
            f"`--chat-template-kwargs` must be a JSON object, got {given!r}. Put braces around its entries."
        )
    return arguments
