"""
Rows to train, calibrate or evaluate on, through `datasets`: of a data set of the Hub, of a folder, or of a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_itp.errors import ArgumentError, LoadError, MissingDependencyError

if TYPE_CHECKING:
    from datasets import Dataset

# By the end of a file's name: the builder of `datasets` that reads it.
_BUILDERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_rows(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """
    Load one split of a data set.

    Args:
        name (`str`): Hub id, a folder, or a file that ends in `.jsonl`, `.jsonl.gz`, `.json`, `.parquet` or `.csv`,
            whose only split is `train`.
        config (`str`, *optional*): Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`): Its split.

    Raises:
        `LoadError`: If it cannot be found or read, or has no such configuration or split.
        `ArgumentError`: If a file is of another kind, or `config` is given with a file.
        `MissingDependencyError`: If `datasets` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            "`dataset_name` needs the package `datasets`, which is not installed. Install it with "
            "`pip install hf-itp[train]`."
        ) from error
    try:
        if not Path(name).is_file():
            return load_dataset(name, config, split=split)
        if config is not None:
            raise ArgumentError(f"`dataset_config` must be left out for a file, got {config!r}. Leave it out.")
        return load_dataset(_builder_of(name), data_files=name, split=split)
    except (ArgumentError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise LoadError(
            f"`dataset_name` {name!r} could not be loaded (configuration {config!r}, split {split!r}): {reason}. "
            "Check the id or path, `dataset_config` and the name of the split."
        ) from error


def _builder_of(file: str) -> str:
    for ending, builder in _BUILDERS.items():
        if file.endswith(ending):
            return builder
    raise ArgumentError(
        f"`dataset_name` must be a Hub id, a folder or a file that ends in {', '.join(_BUILDERS)}, got {file!r}. "
        "Convert the file, or rename it."
    )


def check_column(column: str, rows: Dataset) -> None:
    """
    Raise `ArgumentError` unless the rows have a column of prompts by this name.
    """
    if column not in rows.column_names:
        raise ArgumentError(
            f"`prompt_column` must be a column of the data, got {column!r}. Choose one of "
            f"{', '.join(rows.column_names)}."
        )
