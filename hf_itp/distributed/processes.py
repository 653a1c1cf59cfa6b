"""
The processes of one launch as a call that is split over them sees them: work, hear of each other's end, exchange.

Messages take a gloo group of their own. There a dead process is noticed at once, where NCCL waits for a watchdog, and
no message gets between the collectives of sharded weights, which the default group carries. That is why accelerate's
`gather_object`, which knows the default group only, is not used. Knows nothing of candidates.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from hf_itp.errors import ArgumentError, ProcessError

T = TypeVar("T")

# How long the processes wait for one that is still at work, a slow judge say: as long as it takes. That one is dead is
# noticed at once, by its connection.
_PATIENCE = timedelta(days=365)
# Between two looks at whether the others still live, while this process has work of its own.
_SECONDS_BETWEEN_VOTES = 1.0
# A dead process is noticed within a fraction of this.
_SECONDS_TO_TELL_WHO_FAILED = 5.0

_message_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_at_work: weakref.WeakSet[Processes] = weakref.WeakSet()
_lock = threading.Lock()


class _AnotherFailed(Exception):
    """Unwinds the work of a process that has heard of a failure."""


class Processes:
    """
    The processes of the default group, or this one alone.

    All of them have to call [`run`] and [`gather`] equally often and in the same order. While they work, they vote
    again and again, in the background: "I have work left", "I have failed". The first vote that finds nobody at work,
    or anybody failed, ends the work of all; a vote that cannot be completed says that a process is gone.

    Args:
        group (`torch.distributed.ProcessGroup`, *optional*): What carries messages; `None` for a process alone.
    """

    def __init__(self, group: Any = None):
        self._group = group
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.size = 1 if group is None else torch.distributed.get_world_size(group)
        self._vote: tuple[Any, torch.Tensor] | None = None
        self._last_vote = time.monotonic()
        _at_work.add(self)

    def run(self, work: Callable[[], T]) -> T:
        """
        What `work` returns, once every process has done its own. It may call [`check`] as often as it likes.

        Raises:
            `Exception`: Its own, where `work` fails here.
            `ProcessError`: Where it fails elsewhere, with that process's error, or where a process is gone.
        """
        if self.size == 1:
            return work()
        error, anybody_failed = None, False
        try:
            result = work()
        except ProcessError:
            raise
        except _AnotherFailed:
            anybody_failed = True
        except Exception as own_error:
            error = own_error
        anybody_failed = anybody_failed or self._await_all(failed=error is not None)
        if not anybody_failed:
            return result
        errors = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = next(rank for rank, message in enumerate(errors) if message is not None)
        raise ProcessError(
            f"Process {failed} of {self.size} failed, so process {self.rank} ends with it. Mend what failed there: "
            f"{errors[failed]}"
        )

    def run_in_step(self, work: Callable[[], T]) -> T:
        """
        What `work` returns, where it makes all processes wait for one another itself, as sharded weights do.

        A failure here is told nobody, for the others wait where they cannot hear of it: they end when this process
        does.

        Raises:
            `Exception`: Its own, where `work` fails here.
            `ProcessError`: Where it fails because a process is gone.
        """
        try:
            return work()
        except ProcessError:
            raise
        except RuntimeError:
            # What a lost process looks like inside the model depends on its collectives; here it looks like one.
            if self.size > 1:
                self._await_all(failed=True, patience=_SECONDS_TO_TELL_WHO_FAILED)
            raise

    def check(self) -> None:
        """Ends the work of this process if another has failed or is gone; next to free where none has."""
        if self.size == 1:
            return
        if self._vote is None:
            if time.monotonic() - self._last_vote >= _SECONDS_BETWEEN_VOTES:
                self._cast(working=True, failed=False)
        elif self._vote[0].is_completed() and self._counted()[1]:
            raise _AnotherFailed

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, in order. Small ones: they travel pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._guarded(lambda: torch.distributed.all_gather_object(values, value, group=self._group))
        return values

    def _await_all(self, failed: bool, patience: float = math.inf) -> bool:
        """Votes until nobody works any more, or somebody has failed: whether somebody has."""
        deadline = time.monotonic() + patience
        while True:
            if self._vote is None:
                self._cast(working=False, failed=failed)
            while patience < math.inf and not self._vote[0].is_completed():  # type: ignore[index]
                if time.monotonic() > deadline:
                    return failed
                time.sleep(0.05)
            anybody_works, anybody_failed = self._counted()
            if anybody_failed or not anybody_works:
                return anybody_failed

    def _cast(self, working: bool, failed: bool) -> None:
        ballot = torch.tensor([working, failed], dtype=torch.int32)
        vote = self._guarded(
            lambda: torch.distributed.all_reduce(
                ballot, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
            )
        )
        self._vote, self._last_vote = (vote, ballot), time.monotonic()

    def _counted(self) -> tuple[bool, bool]:
        assert self._vote is not None
        (vote, ballot), self._vote = self._vote, None
        self._guarded(vote.wait)
        working, failed = ballot.tolist()
        return bool(working), bool(failed)

    def _guarded(self, communicate: Callable[[], T]) -> T:
        try:
            return communicate()
        except RuntimeError as error:
            others = "the other process" if self.size == 2 else f"one of the other {self.size - 1} processes"
            raise ProcessError(
                f"Process {self.rank} of {self.size} has lost {others}, which was killed, crashed or cannot be "
                "reached, so the candidates it had are missing. Look for its last words, and for what killed it "
                "(often: out of memory); then start the whole launch again."
            ) from error


def launched_processes() -> Processes:
    """
    The processes of this launch, joined by `accelerate.Accelerator()` or `torch.distributed.init_process_group()`.
    Without a launch, this one alone.

    Raises:
        `ArgumentError`: If several were launched and nothing has joined them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(_message_group()) if torch.distributed.get_world_size() > 1 else Processes()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched not in ("", "1"):
        raise ArgumentError(
            f"`shard` needs the {launched} processes of this launch to be joined, but they are not, and each would "
            "draw everything. Create accelerate.Accelerator() before the call, on CPUs Accelerator(cpu=True)."
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
    Ends gloo's threads while Python still runs. One that still holds the tensor of the last message when Python ends
    aborts the process ("terminate called without an active exception"), seen on a busy machine. To go once torch
    does it by itself (pytorch/pytorch#190489).
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return  # what has ended the launch has ended this group with it
    # Its threads are waited for, and one with a vote that the others have not answered would wait for them.
    if not any(processes._vote for processes in _at_work):
        group = _message_groups.pop(torch.distributed.group.WORLD, None)
        if group is not None:
            torch.distributed.destroy_process_group(group)
