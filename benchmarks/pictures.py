"""
Pictures of a run, drawn from the rows of its table as far as they suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from benchmarks import curves
from benchmarks.style import INK, LABELS, STYLES, finish
from benchmarks.summary import Row

_PAIR_GAP = 0.16


def draw_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the pictures that the rows suffice for, and return their paths."""
    measured = [row for row in rows if row["repeats"]]
    figures = {
        "throughput": _throughput([row for row in measured if row["kind"] == "sample"]),
        "scaling": curves.scaling([row for row in measured if row["kind"] == "sample"]),
        "memory": curves.memory([row for row in measured if row["kind"] == "sample"]),
        "selection": _selection([row for row in measured if row["kind"] == "select"]),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=130)
            written.append(path)
    return written


def _throughput(rows: Sequence[Row]) -> Figure | None:
    """Draw the useful tokens per second of every contestant, a line per workload."""
    if not rows:
        return None
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure = Figure(figsize=(8.6, 1.9 + 0.5 * len(workloads)), layout="constrained")
    panel = figure.subplots()
    present = [name for name in STYLES if any(row["contestant"] == name for row in rows)]
    for row in rows:
        place = present.index(row["contestant"]) - (len(present) - 1) / 2
        height = workloads.index(row["workload"]) + _PAIR_GAP * place
        colour, marker = STYLES[row["contestant"]]
        low, middle, high = (row[f"tokens_per_second{end}"] for end in ("_min", "", "_max"))
        panel.plot([low, high], [height, height], color=colour, linewidth=2, alpha=0.6)
        panel.plot(middle, height, color=colour, marker=marker, linestyle="none", label=LABELS[row["contestant"]])
        if row["contestant"] == "ours" and (text := _lead(rows, row["workload"])):
            place = (1.01, workloads.index(row["workload"]))
            panel.annotate(text, place, xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=8)
    panel.set_yticks(range(len(workloads)), [_words(rows, name) for name in workloads])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color="#EEEEEE", linewidth=6, zorder=-1)
    panel.set_xlabel("useful tokens per second, reward and selection included (median; line: all repeats)")
    finish(figure, panel, _headline(rows))
    return figure


def _selection(rows: Sequence[Row]) -> Figure | None:
    """Draw the seconds of every strategy, on the largest table of rewards."""
    if not rows:
        return None
    largest = max(rows, key=lambda row: row["prompts"] * row["candidates"])["workload"]
    rows = sorted((row for row in rows if row["workload"] == largest), key=lambda row: row["seconds"])
    figure = Figure(figsize=(7.4, 1.7 + 0.34 * len(rows)), layout="constrained")
    panel: Axes = figure.subplots()
    names, seconds = [row["contestant"] for row in rows], [row["seconds"] for row in rows]
    spread = [
        [row["seconds"] - row["seconds_min"] for row in rows],
        [row["seconds_max"] - row["seconds"] for row in rows],
    ]
    panel.barh(names, seconds, xerr=spread, color=STYLES["ours"][0], height=0.6, ecolor=INK)
    panel.axvline(1.0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    panel.annotate("1 s", (1.0, 1.01), xycoords=("data", "axes fraction"), ha="center")
    panel.set_xlim(0, max(1.15, 1.1 * max(row["seconds_max"] for row in rows)))
    panel.set_xlabel("seconds (median; line: all repeats)")
    first = rows[0]
    what = f"{first['prompts']:,} prompts x {first['candidates']:,} candidates"
    finish(figure, panel, f"Selecting for {what} takes {seconds[0]:.2g} to {seconds[-1]:.2g} s", legend=False)
    return figure


def _headline(rows: Sequence[Row]) -> str:
    leads = [
        row["ours_times_faster"] for row in rows if row["contestant"] == "generate" and "ours_times_faster" in row
    ]
    if not leads:
        return "Useful tokens per second"
    low, high = (f"{lead:.1f}" for lead in (min(leads), max(leads)))
    times = low if low == high else f"{low} to {high}"
    return f"{times} times the useful tokens per second of generate(num_return_sequences=N)"


def _lead(rows: Sequence[Row], workload: str) -> str:
    return "\n".join(
        f"{row['ours_times_faster']:.1f}x {row['contestant']}"
        for row in rows
        if row["workload"] == workload and row["contestant"] != "ours" and "ours_times_faster" in row
    )


def _words(rows: Sequence[Row], workload: str) -> str:
    row = next(row for row in rows if row["workload"] == workload)
    prompts = "prompt" if row["prompts"] == 1 else f"{row['prompts']} prompts up to"
    return f"{prompts} {row['prompt_tokens']}, N={row['candidates']}, {row['max_new_tokens']} new"
