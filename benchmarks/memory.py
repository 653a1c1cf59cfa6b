"""
Memory of this process, or of its accelerator: now, and its peak since a chosen moment.
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
    """Measure the peak from now on, or from the start of the process where the system cannot reset it."""
    give_back_freed()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # man 5 proc: 5 resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """Return the peak since [`reset_peak`]: of the whole process on the CPU, of the allocator on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        # Not `getrusage`, whose ru_maxrss survives the reset.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_bytes(device: torch.device) -> int:
    """Return the memory in use now."""
    give_back_freed()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def give_back_freed() -> None:
    """Release memory kept for reuse, which would count as in use and hide as much of the next use."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only in Linux's C library
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is still free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
