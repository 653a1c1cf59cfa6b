"""A strategy's own fields as words of the command line: `--set name=value`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer


def parse_fields(assignments: Sequence[str], **common: Any) -> dict[str, Any]:
    """
    Return the fields from `--set`, read as JSON if they are, else as text, and those with options of their own.

    Raises:
        `typer.BadParameter`: If an assignment has no `=`, or a field is given twice.

    Examples:

    ```python
    >>> parse_fields(["pool=fresh", "reward_bound=1"], beta=0.2)
    {'beta': 0.2, 'pool': 'fresh', 'reward_bound': 1}

    ```
    """
    fields = {name: value for name, value in common.items() if value is not None}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(
                f"must have the form name=value, got {assignment!r}. Write e.g. --set beta=0.1.", param_hint="'--set'"
            )
        if name in fields:
            raise typer.BadParameter(f"must give {name} once, got it twice. Leave one out.", param_hint="'--set'")
        try:
            fields[name] = json.loads(text)
        except json.JSONDecodeError:
            fields[name] = text
    return fields
