"""
Read pools from files: JSON lines, gzipped or not, and Parquet.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from hf_itp.errors import ArgumentError, LoadError, MissingDependencyError

Row = dict[str, Any]
"""One prompt of a pool: `index`, `prompt`, `responses`, `response_ids`, `rewards`."""


def read_pool(path: Path) -> list[Row]:
    """
    Read the rows of a pool file (`.jsonl`, `.jsonl.gz` or `.parquet`), each with a `prompt` and its `rewards`.

    Raises:
        `LoadError`: If there is no such file.
        `MissingDependencyError`: If `pyarrow` is not installed and the file is Parquet.
        `ArgumentError`: If a row does not parse, or lacks prompt or rewards; names the row.
    """
    if not path.is_file():
        raise LoadError(f"A pool must be a file, got none at {path}. Pass a .jsonl, .jsonl.gz or .parquet file.")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.get("prompt") or not row.get("rewards"):
            raise ArgumentError(
                f"Every row of a pool must have a `prompt` and its `rewards`, got {shortened(row)} in row {number} of "
                f"{path}. Complete or remove it."
            )
    return rows


def _json_rows(path: Path) -> list[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ArgumentError(
                f"Every row of a pool must be a JSON object, got one that does not parse in row {number} of {path} "
                f"({error}). Correct or remove it."
            ) from None
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "`pyarrow` is needed to read a Parquet pool. Install it with `pip install pyarrow`."
        ) from error
    return parquet.read_table(path).to_pylist()


def shortened(value: object) -> str:
    """Return a value as text for an error, cut if it is long."""
    return f"{value!r:.100}"
