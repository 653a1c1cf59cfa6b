"""
Keep rows on disk, in a file that grows while they are drawn and survives a kill.

Where several processes draw, each appends to its own part; once all prompts are done, the parts become one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_itp.errors import ArgumentError
from hf_itp.pools.file import shortened
from hf_itp.pools.schema import Row

POOL = "reference_pool.jsonl"
SETTINGS = "reference_pool.json"

# Bytes read at once from the end of a part.
_BLOCK = 4096


class Journal:
    """
    Rows on disk by their `index`: appended as they are done, resumed by a later run, put in order at the end.

    Args:
        whole (`Path`): File of all rows, once they are done.
        settings (`dict`): Everything that decides the rows. A journal with other settings is refused.
        settings_file (`Path`): File of the settings.
        part (`Path`, *optional*): File that this process appends to. Defaults to `whole`.
        place (`str`): What to call it in an error, and `remedy` what to do.

    Raises:
        `ArgumentError`: If there are rows of other settings.
    """

    def __init__(
        self,
        whole: Path,
        settings: dict[str, Any],
        settings_file: Path,
        part: Path | None = None,
        *,
        place: str,
        remedy: str,
    ):
        self._whole, self._part = whole, part or whole
        whole.parent.mkdir(parents=True, exist_ok=True)
        _check_settings(settings_file, settings, place, remedy)

    def rows(self) -> dict[int, Row]:
        """Return all complete rows by their index, the last of each. A line that a kill cut short is left out."""
        files = [self._whole] if self._whole.exists() else self._parts()
        found: dict[int, Row] = {}
        for row in (row for file in files for row in _complete_rows(file)):
            self._keep(found, row)
        return found

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows to this process's part, and flush them to the disk."""
        _cut_incomplete_line(self._part)
        with self._part.open("a", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Put all rows in one file, in the order of the prompts. To be called by one process, once all are done."""
        rows = self.rows()
        temporary = self._whole.with_name(f"{self._whole.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(rows[index]) for index in sorted(rows))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._whole)
        for part in self._parts():
            part.unlink()

    def _keep(self, found: dict[int, Row], row: Row) -> None:
        """Add a row to those found before it: the last of each index counts."""
        found[row["index"]] = row

    def _parts(self) -> list[Path]:
        """Return what all processes have appended to, beside the whole."""
        return []


class ReferencePool(Journal):
    """
    Rows of one calibration on disk, which a later run resumes.

    Args:
        folder (`Path`): Folder of the pool; created if it does not exist.
        settings (`dict`): Everything that decides what is drawn. A folder with other settings is refused.
        part (`int`, *optional*, defaults to 0): Number of this process.

    Raises:
        `ArgumentError`: If the folder holds a pool with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], part: int = 0):
        self.folder = folder
        super().__init__(
            folder / POOL,
            settings,
            folder / SETTINGS,
            folder / f"reference_pool.part-{part}.jsonl",
            place=f"`output_dir` must hold a pool of the same settings or none, got {folder}",
            remedy="Choose another folder, or delete this one to draw again.",
        )

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("reference_pool.part-*.jsonl"))

    def _keep(self, found: dict[int, Row], row: Row) -> None:
        # A row that was only drawn, without `rewards`, gives way to the scored one.
        if "rewards" in row or row["index"] not in found:
            found[row["index"]] = row


def _check_settings(path: Path, settings: dict[str, Any], place: str, remedy: str) -> None:
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    different = _first_difference(found, json.loads(text))
    if different is not None:
        name, there, wanted = different
        raise ArgumentError(f"{place} with `{name}` {shortened(there)} instead of {shortened(wanted)}. {remedy}")


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _complete_rows(path: Path) -> list[Row]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break was cut short
    return [json.loads(line) for line in lines]


def _cut_incomplete_line(path: Path) -> None:
    """Cut off an incomplete last line. Reads from the end, so that the cost does not grow with the file."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        complete, start = 0, end
        while start > 0:
            start = max(0, start - _BLOCK)
            file.seek(start)
            if (found := file.read(min(_BLOCK, end - start)).rfind(b"\n")) >= 0:
                complete = start + found + 1
                break
        if complete < end:
            file.truncate(complete)


def _first_difference(there: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the name of the innermost entry that differs between two JSON objects, and both values."""
    if there == wanted:
        return None
    if not (isinstance(there, dict) and isinstance(wanted, dict)):
        return name, there, wanted
    for key in [*wanted, *(key for key in there if key not in wanted)]:
        inner = _first_difference(there.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        if inner is not None:
            return inner
    return name, there, wanted  # an entry that only one has, as null
