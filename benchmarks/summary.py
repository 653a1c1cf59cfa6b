"""
Turn passes into rows of a table: medians with their spread, ratios within a round, and facts of the machine.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.interleave import Entry
from benchmarks.workloads import Workload

_PACKAGES = ("hf-itp", "torch", "transformers", "accelerate", "llama-cpp-python")
Row = dict[str, Any]


def summary_rows(workload: Workload, entries: Sequence[Entry], machine: Row) -> list[Row]:
    """Return one row per contestant: its numbers, or why there are none. Memory is in MiB."""
    rate = _machine_rate(entries)
    ours = next((entry for entry in entries if entry.contestant == "ours"), None)
    return [
        {
            "workload": workload.name,
            **_definition(workload),
            "contestant": entry.contestant,
            "repeats": len(entry.passes),
            "skipped": entry.skipped,
            **(_numbers(entry, ours, rate) if entry.passes else {}),
            **machine,
            "accelerator": entry.facts.get("accelerator") or "none",
        }
        for entry in entries
        if entry.contestant != "machine"
    ]


def pass_rows(workload: Workload, entries: Sequence[Entry]) -> list[Row]:
    """Return one row per pass, as measured."""
    return [
        {"workload": workload.name, "contestant": entry.contestant, **{k: v for k, v in one.items() if k != "rewards"}}
        for entry in entries
        for one in entry.passes
    ]


def machine_facts(options: dict[str, Any]) -> Row:
    """Return the kind of machine and the versions of libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **{name: options[name] for name in ("threads", "device", "dtype", "model", "reward_model")},
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _definition(workload: Workload) -> Row:
    return {
        "kind": workload.kind,
        "prompts": workload.prompts,
        "prompt_tokens": workload.prompt_tokens,
        "candidates": workload.candidates,
        "max_new_tokens": workload.max_new_tokens,
    }


def _numbers(entry: Entry, ours: Entry | None, rate: float | None) -> Row:
    passes = entry.passes
    row: Row = {**_spread("seconds", [one["seconds"] for one in passes])}
    if "tokens" in passes[0]:
        row |= _spread("tokens_per_second", [one["tokens"] / one["seconds"] for one in passes])
        row["mean_tokens"] = statistics.mean(one["tokens"] for one in passes)
    drawing = [{**one, "seconds": one.get("sampling_seconds", one["seconds"])} for one in passes]
    if "sampling_seconds" in passes[0]:
        row |= _spread("sampling_tokens_per_second", [one["tokens"] / one["seconds"] for one in drawing])
    if "operations" in passes[0] and rate:
        row |= _spread("matrix_product_share", [one["operations"] / one["seconds"] / rate for one in drawing])
        row["matrix_product_gflops"] = rate / 1e9
    row |= _memory(entry)
    if ours is not None and ours.passes:
        row |= _against(entry, ours)
    row["path"] = passes[0].get("path", "")
    row |= _spread("load_average", [one["load_average"] for one in passes])
    return row


def _memory(entry: Entry) -> Row:
    mib = 2**20
    loaded = entry.facts["resident_bytes"]
    row = {"peak_mib": _highest(entry, "peak_bytes") / mib, "loaded_mib": loaded / mib}
    if "sampling_peak_bytes" in entry.passes[0]:
        row["sampling_peak_mib"] = _highest(entry, "sampling_peak_bytes") / mib
    return row


def _highest(entry: Entry, name: str) -> float:
    return max(one[name] for one in entry.passes)


def _against(entry: Entry, ours: Entry) -> Row:
    """Return how much faster and smaller ours is, by ratios within each round."""
    pairs = list(zip(ours.passes, entry.passes, strict=False))
    row: Row = {}
    if "tokens" in entry.passes[0]:
        speeds = [mine["tokens"] / mine["seconds"] / (other["tokens"] / other["seconds"]) for mine, other in pairs]
        row |= _spread("ours_times_faster", speeds)
    row["ours_memory_share"] = _highest(ours, "peak_bytes") / _highest(entry, "peak_bytes")
    if "sampling_peak_bytes" in entry.passes[0]:
        above = [_highest(one, "sampling_peak_bytes") - one.facts["resident_bytes"] for one in (ours, entry)]
        row["ours_sampling_memory_share"] = above[0] / above[1] if above[1] > 0 else ""
    if "rewards" in entry.passes[0]:
        row["largest_reward_difference"] = max(
            abs(a - b) for mine, other in pairs for a, b in zip(mine["rewards"], other["rewards"], strict=True)
        )
    return row


def _spread(name: str, values: Sequence[float]) -> Row:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _machine_rate(entries: Sequence[Entry]) -> float | None:
    """Return the best rate of all rounds, since other work can only slow it."""
    rates = [
        one["operations_per_second"] for entry in entries for one in entry.passes if entry.contestant == "machine"
    ]
    return max(rates, default=None)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
