"""`hf-itp strategies`: list the strategies and their fields."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_itp.cli import options
from hf_itp.cli.records import to_json

if TYPE_CHECKING:
    from hf_itp.strategies import Strategy


def strategies(
    json: Annotated[bool, options.output("--json", help="Write one JSON array.")] = False, debug: options.Debug = False
) -> None:
    """List the strategies with their fields, for `hf-itp generate --strategy` and `--set`."""
    from hf_itp.strategies import list_strategies
    from hf_itp.strategies.registry import strategy_class

    rows = [_row_of(strategy_class(name)) for name in list_strategies()]
    if json:
        print(to_json(rows, indent=2, encoding=sys.stdout.encoding))
        return
    table = Table(show_lines=True)
    table.add_column("strategy", no_wrap=True, style="bold")
    table.add_column("what it returns, and when to use it")
    table.add_column("fields and defaults", no_wrap=True)
    for row in rows:
        fields = "\n".join(f"{name}={default}" for name, default in row["fields"].items())
        table.add_row(row["name"], escape(f"{row['returns']}\nUse: {row['when_to_use']}"), escape(fields or "none"))
    Console().print(table)


def _row_of(strategy: type[Strategy]) -> dict[str, Any]:
    fields = dataclasses.fields(strategy)
    required = {field.name: "required" for field in fields if field.default is dataclasses.MISSING}
    # Of an object, what runs: a default may depend on the other fields.
    defaults = {field.name: field.default for field in fields} if required else strategy().settings()
    # The docstring without markup for formulas, links, code and emphasis. A LaTeX command keeps its name.
    text = re.sub(r"\\\\[()] ?|\\(?=\w)|[`*]", "", strategy.__doc__ or "")
    text = re.sub(r"\[([^\]]*)\](?:\([^)]*\))?", r"\1", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    use = next((paragraph for paragraph in paragraphs if paragraph.startswith("When to use:")), "")
    return {
        "name": strategy.name,
        "returns": paragraphs[0],
        "when_to_use": use.removeprefix("When to use:").strip(),
        "fields": defaults | required,
    }
