"""
Contestants by name, each importing only what it needs.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import Contestant, Machine, Selection
from benchmarks.workloads import Workload


def make_contestant(name: str, workload: Workload, options: dict[str, Any]) -> Contestant:
    """Make the contestant of that name for the workload."""
    if name == "machine":
        return Machine(workload, options)
    if workload.kind == "select":
        return Selection(workload, options, name)
    if workload.kind == "score":
        from benchmarks.scoring import SCORERS

        return SCORERS[name](workload, options)
    if name == "llama.cpp":
        from benchmarks.llama_cpp_peer import LlamaCpp

        return LlamaCpp(workload, options)
    from benchmarks.sampling import SAMPLERS

    return SAMPLERS[name](workload, options)
