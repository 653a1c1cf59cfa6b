"""
Coordinate the processes of a launch: run work in each, exchange the results, propagate a failure.

Messages take a gloo group of their own. It notices a lost connection at once, while NCCL waits for a watchdog. And no
message gets between the collectives of sharded weights, which the default group carries. So accelerate's
`gather_object`, which knows only the default group, is not used. If a process is killed, the launcher ends the others.
Knows nothing of candidates.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from hf_itp.errors import ArgumentError, ProcessError

T = TypeVar("T")

# How long the processes wait for one that is still at work, such as a slow judge: as long as it takes.
_PATIENCE = timedelta(days=365)

_message_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Processes:
    """
    The processes of the default group, or this one only. All must call [`gather`] equally often and in one order.

    Args:
        group (`torch.distributed.ProcessGroup`, *optional*): Carries the messages; `None` for a single process.
    """

    def __init__(self, group: Any = None):
        self._group = group
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.size = 1 if group is None else torch.distributed.get_world_size(group)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """
        Run `work` in every process and return the results of all, in order. They travel pickled: keep them small.

        Raises:
            `Exception`: The error of `work` if it fails here, once the others have been told.
            `ProcessError`: If `work` fails only elsewhere, or another process has ended.
        """
        if self.size == 1:
            return [work()]
        result: Any = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        reports: list[Any] = [None] * self.size
        report = (result, None if failure is None else f"{type(failure).__name__}: {failure}")
        try:
            torch.distributed.all_gather_object(reports, report, group=self._group)
        except RuntimeError as error:
            raise ProcessError(
                f"Process {self.rank} of {self.size} has lost another process, which was killed, crashed or cannot be "
                "reached, so the results it had are missing. Check its log for the cause (often: out of memory), "
                "then start the whole launch again."
            ) from (failure or error)
        if failure is not None:
            raise failure
        for rank, (_, message) in enumerate(reports):
            if message is not None:
                raise ProcessError(
                    f"Process {rank} of {self.size} failed, so process {self.rank} ends with it. Fix what failed "
                    f"there: {message}"
                )
        return [result for result, _ in reports]


def launched_processes() -> Processes:
    """
    Return the processes of this launch, joined by `accelerate.Accelerator()` or
    `torch.distributed.init_process_group()`; without a launch, this one only.

    Raises:
        `ArgumentError`: If several were launched and nothing has joined them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(_message_group()) if torch.distributed.get_world_size() > 1 else Processes()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched not in ("", "1"):
        raise ArgumentError(
            f"The {launched} processes of this launch must be joined to share work, got none joined: each would do "
            "all of it. Create accelerate.Accelerator() before the call, on CPUs Accelerator(cpu=True)."
        )
    return Processes()


def _message_group() -> Any:
    default = torch.distributed.group.WORLD
    with _lock:
        if default not in _message_groups:
            _message_groups[default] = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return _message_groups[default]


@atexit.register
def _end_message_group() -> None:
    """
    End gloo's threads while Python still runs. A thread that still holds the tensor of the last message when Python
    ends aborts the process ("terminate called without an active exception"), seen on a busy machine. Remove once torch
    ends them itself (pytorch/pytorch#190489).
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return  # whoever ended the launch has ended this group with it
    group = _message_groups.pop(torch.distributed.group.WORLD, None)
    if group is not None:
        torch.distributed.destroy_process_group(group)
