"""
Curves of speed and memory by number of candidates, length of the prompt and size of the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from benchmarks.style import LABELS, STYLES, finish
from benchmarks.summary import Row

_AXES = {
    "candidates": "candidates per prompt (N)",
    "prompt_tokens": "tokens of the prompt",
    "prompts": "prompts in the batch",
}
_WORDS = {
    "candidates": "N = {}",
    "prompt_tokens": "prompt of {} tokens",
    "prompts": "{} prompt(s)",
    "max_new_tokens": "up to {} new tokens",
}


def scaling(rows: Sequence[Row]) -> Figure | None:
    """Draw useful tokens per second along each of the three axes with at least two points."""
    families = {axis: family for axis in _AXES if (family := _longest_family(rows, axis))}
    if not families:
        return None
    figure = Figure(figsize=(4.4 * len(families), 4.1), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for panel, (axis, family) in zip(panels, families.items(), strict=True):
        for name, mine in _by_contestant(family).items():
            middle = [row["tokens_per_second"] for row in mine]
            spread = [
                [row["tokens_per_second"] - row["tokens_per_second_min"] for row in mine],
                [row["tokens_per_second_max"] - row["tokens_per_second"] for row in mine],
            ]
            _line(panel, axis, name, [row[axis] for row in mine], middle, spread)
        panel.set_ylim(bottom=0)
        panel.set_ylabel("useful tokens per second")
        panel.set_title(_fixed(family[0], axis), fontsize=10, loc="left")
    finish(figure, panels, "Tokens per second by candidates, prompt length and batch (median; bars: all repeats)")
    return figure


def memory(rows: Sequence[Row]) -> Figure | None:
    """Draw the memory of sampling by number of candidates, and of each further candidate by prompt length."""
    rows = [row for row in rows if row["prompts"] == 1 and "sampling_peak_mib" in row]
    family = _longest_family(rows, "candidates")
    if not family:
        return None
    figure = Figure(figsize=(9.4, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, mine in _by_contestant(family).items():
        used = [row["sampling_peak_mib"] - row["loaded_mib"] for row in mine]
        _line(left, "candidates", name, [row["candidates"] for row in mine], used)
    left.set_ylabel("MiB above the loaded model")
    left.set_title(_fixed(family[0], "candidates"), fontsize=10, loc="left")
    further = _further_candidate([row for row in rows if row["max_new_tokens"] == family[0]["max_new_tokens"]])
    for name, points in further.items():
        _line(right, "prompt_tokens", name, *zip(*sorted(points.items()), strict=True))
    right.set_ylabel("MiB per further candidate")
    right.set_title(_WORDS["max_new_tokens"].format(family[0]["max_new_tokens"]), fontsize=10, loc="left")
    for panel in (left, right):
        panel.set_ylim(bottom=0)
    finish(figure, (left, right), _memory_headline(further.get("ours", {})))
    return figure


def _further_candidate(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return the MiB per candidate from the smallest to the largest N, by contestant and prompt length."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["contestant"], row["prompt_tokens"]].append(row)
    slopes: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, length), group in groups.items():
        few, many = (choose(group, key=lambda row: row["candidates"]) for choose in (min, max))
        if many["candidates"] > few["candidates"]:
            more = many["sampling_peak_mib"] - few["sampling_peak_mib"]
            slopes[name][length] = more / (many["candidates"] - few["candidates"])
    return {name: slopes[name] for name in STYLES if name in slopes}


def _memory_headline(points: dict[int, float]) -> str:
    if len(points) < 2:
        return "Memory of sampling"
    low, high = min(points), max(points)
    return (
        f"A further candidate takes {points[low]:.1f} MiB after a prompt of {low} tokens, "
        f"{points[high]:.1f} MiB after one of {high}"
    )


def _longest_family(rows: Sequence[Row], axis: str) -> list[Row]:
    """Return the largest family of rows that differ only in `axis`; empty unless they make a curve."""
    families = defaultdict(list)
    for row in rows:
        families[tuple(row[name] for name in _WORDS if name != axis)].append(row)
    best = max(families.values(), key=lambda family: len({row[axis] for row in family}), default=[])
    return best if len({row[axis] for row in best}) > 1 else []


def _by_contestant(rows: Iterable[Row]) -> dict[str, list[Row]]:
    rows = sorted(rows, key=lambda row: (row["candidates"], row["prompt_tokens"], row["prompts"]))
    groups = {name: [row for row in rows if row["contestant"] == name] for name in STYLES}
    return {name: group for name, group in groups.items() if group}


def _line(panel: Axes, axis: str, name: str, x: Sequence[int], y: Sequence[float], spread: object = None) -> None:
    colour, marker = STYLES[name]
    panel.errorbar(x, y, yerr=spread, color=colour, marker=marker, capsize=3, label=LABELS[name])
    panel.set_xlabel(_AXES[axis])
    panel.set_xscale("log", base=2)
    ticks = sorted({*x, *getattr(panel.xaxis.get_major_locator(), "locs", ())})
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())


def _fixed(row: Row, axis: str) -> str:
    names = [name for name in _WORDS if name != axis and not (name == "prompts" and row[name] == 1)]
    return ", ".join(_WORDS[name].format(row[name]) for name in names)
