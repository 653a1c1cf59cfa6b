"""
`python -m benchmarks`: measure, print a table, write CSV and pictures. README.md says how to read them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.interleave import Turns
from benchmarks.pictures import draw_pictures
from benchmarks.summary import Row, machine_facts, pass_rows, summary_rows
from benchmarks.table import print_table, write_csv
from benchmarks.workloads import COMPETITORS, FULL, QUICK, Workload

_RESULTS = Path(__file__).parent / "results"
_QUICK_MINUTES = 4


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure as the command line says, and return the rows of the table."""
    given = _parser().parse_args(arguments)
    names = given.only or (QUICK if given.quick else FULL)
    workloads = [Workload.parse(name) for name in names]
    output = given.output or (_RESULTS / "quick" if given.quick else _RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(given, name) for name in ("model", "reward_model", "device", "dtype", "threads")}
    minutes = given.minutes or (_QUICK_MINUTES if given.quick else None)
    started = time.monotonic()
    progress = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        progress.print(f"{time.monotonic() - started:7.0f} s  {line}", markup=False, soft_wrap=True)

    turns = Turns(
        options,
        repeats=given.repeats or (2 if given.quick else 3),
        patience=given.patience,
        deadline=started + 60 * minutes if minutes else None,
        say=say,
    )
    machine = machine_facts(options)
    rows: list[Row] = []
    passes: list[Row] = []
    try:
        for workload in workloads:
            contestants = [name for name in COMPETITORS[workload.kind] if not given.against or name in given.against]
            entries = turns.run(workload, contestants)
            rows += summary_rows(workload, entries, machine)
            passes += pass_rows(workload, entries)
            # After every workload, so that an interrupted run keeps its results.
            write_csv(output / "results.csv", rows)
            write_csv(output / "passes.csv", passes)
    finally:
        turns.close()
    pictures = draw_pictures(rows, output)
    # A file or a pipe gets the whole width of the table.
    print_table(Console(highlight=False, width=None if sys.stdout.isatty() else 180), rows)
    print(f"Written: {', '.join(str(path) for path in (output / 'results.csv', output / 'passes.csv', *pictures))}")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"a subset in under {_QUICK_MINUTES + 1} minutes")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", help="only these workloads, e.g. p600-n64-t96")
    parser.add_argument("--against", nargs="+", metavar="CONTESTANT", help="only these contestants")
    parser.add_argument("--model", default="embedded", help="policy: Hub id, folder or 'embedded' (default)")
    parser.add_argument("--reward-model", default="embedded", help="Hub id, folder or 'embedded' (default)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="data type of the policy")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False), help="default: cores")
    parser.add_argument("--repeats", type=int, help="passes per contestant (3, quick: 2)")
    parser.add_argument("--patience", type=float, default=600, help="skip passes expected to take more seconds (600)")
    parser.add_argument("--minutes", type=float, help="start nothing new after this time")
    parser.add_argument("--output", type=Path, help=f"folder (default: {_RESULTS.parent.name}/{_RESULTS.name})")
    return parser


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"python -m benchmarks: {error}")
