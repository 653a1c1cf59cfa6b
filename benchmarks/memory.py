"""
Peak memory of this process, or of its accelerator, since a moment of one's choice.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Measures from now on. Where the system cannot forget a process's peak, from its start."""
    give_back_freed()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # man 5 proc: 5 resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """The peak since [`reset_peak`]: weights and libraries included on the CPU, the allocator's on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        # What `getrusage` reports as ru_maxrss, which survives the reset.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_bytes(device: torch.device) -> int:
    """What is in use now."""
    give_back_freed()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def give_back_freed() -> None:
    """Lets go of what is free but kept for reuse; counted as in use, it would hide as much of what comes."""
    gc.collect()
    with suppress(AttributeError, OSError):  # of the C library of Linux alone
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> int:
    """What could still be used."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
