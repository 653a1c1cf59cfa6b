"""
Read pools from files, row by row: JSON lines, gzipped or not, and Parquet.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from hf_itp.errors import ArgumentError, LoadError, MissingDependencyError
from hf_itp.pools.schema import REWARDS, Row, numbers


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """
    Yield the rows of a pool file (`.jsonl`, `.jsonl.gz` or `.parquet`), each behind its place: "line 3 of pool.jsonl".

    Only one row, of a Parquet file one group of rows, is in memory at a time.

    Raises:
        `LoadError`: If there is no such file.
        `MissingDependencyError`: If `pyarrow` is not installed and the file is Parquet.
        `ArgumentError`: If a row does not parse or is not an object; names the row.
    """
    if not path.is_file():
        raise LoadError(f"A pool must be a file, got none at {path}. Pass a .jsonl, .jsonl.gz or .parquet file.")
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def read_pool(path: Path) -> list[Row]:
    """
    Read all rows of a pool file whose rows have a `prompt` and its `rewards`.

    Raises:
        `LoadError`, `MissingDependencyError`: As [`read_rows`].
        `ArgumentError`: Also if a row lacks prompt or rewards, or a reward is neither a finite number nor `null`.
    """
    rows = []
    for where, row in read_rows(path):
        if not row.get("prompt") or not row.get("rewards"):
            raise ArgumentError(
                f"Every row of a pool must have a `prompt` and its `rewards`, got {shortened(row)} in {where}. "
                "Complete or remove it."
            )
        numbers(row, REWARDS, where)
        rows.append(row)
    return rows


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {path}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ArgumentError(
                    f"Every row of a pool must be a JSON object, got one that does not parse in {where} ({error}). "
                    "Correct or remove it."
                ) from None
            if not isinstance(row, dict):
                raise ArgumentError(
                    f"Every row of a pool must be a JSON object, got {shortened(row)} in {where}. Remove it."
                )
            yield where, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "`pyarrow` is needed to read a Parquet pool. Install it with `pip install pyarrow`."
        ) from error
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {path}", row


def shortened(value: object) -> str:
    """Return a value as text for an error, cut if it is long."""
    return f"{value!r:.100}"
