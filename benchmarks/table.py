"""
The table of results, on the terminal and as CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.summary import Row

_COLUMNS = (
    "tokens/s",
    "sampling only",
    "seconds",
    "peak MiB",
    "sampling +MiB",
    "of peak rate",
    "ours is faster",
    "in memory",
)


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Print one line per workload and contestant: medians, with the range of the repeats in brackets."""
    table = Table(title="Medians of interleaved repeats [from - to]", title_justify="left", box=None, padding=(0, 1))
    table.add_column("workload", no_wrap=True)
    table.add_column("contestant", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("", overflow="fold")
    last = None
    for row in rows:
        if last not in (None, row["workload"]):
            table.add_section()
        cells = _cells(row) if row["repeats"] else [""] * len(_COLUMNS)
        first = row["workload"] if row["workload"] != last else ""
        table.add_row(first, row["contestant"], *map(escape, cells), escape(row["skipped"]))
        last = row["workload"]
    console.print(table)
    loads = [row["load_average"] for row in rows if row["repeats"]]
    if loads:
        first = rows[0]
        console.print(
            f"{first['processor']}, {first['cores']} cores, {first['threads']} threads, {first['device']}, "
            f"{first['dtype']}; load average {min(loads):.1f} to {max(loads):.1f}; hf_itp {first['hf-itp']}, torch "
            f"{first['torch']}, transformers {first['transformers']}",
            markup=False,
            highlight=False,
        )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows with the columns of any; what a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in row.items()} for row in rows)


def _cells(row: Row) -> list[str]:
    above = f"{row['sampling_peak_mib'] - row['loaded_mib']:.0f}" if "sampling_peak_mib" in row else ""
    peer = row["contestant"] != "ours" and "ours_memory_share" in row
    return [
        _median(row, "tokens_per_second", "{:.1f}"),
        f"{row['sampling_tokens_per_second']:.1f}" if "sampling_tokens_per_second" in row else "",
        f"{row['seconds']:.2f}",
        f"{row['peak_mib']:.0f}",
        above,
        f"{row['matrix_product_share']:.2f}" if "matrix_product_share" in row else "",
        _median(row, "ours_times_faster", "{:.2f}") + "x" if peer else "",
        f"{row['ours_memory_share']:.2f}x" if peer else "",
    ]


def _median(row: Row, name: str, form: str) -> str:
    if name not in row:
        return ""
    low, middle, high = (form.format(row[key]) for key in (f"{name}_min", name, f"{name}_max"))
    return middle if low == high else f"{middle} [{low} - {high}]"


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
