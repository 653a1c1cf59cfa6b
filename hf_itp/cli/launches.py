"""Leave a launch of several processes that a command has joined."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def launch_left() -> Iterator[None]:
    """
    Leave the launch that the work within has joined, once it succeeds. Imports no torch.

    Threads of gloo that outlive it may abort the process while Python ends; scripts call `accelerator.end_training()`.
    After a failure the process only ends, since the others may be waiting in the middle of a message.
    """
    joined_before = _has_joined()
    try:
        yield
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
        _leave(joined_before)
        raise
    _leave(joined_before)


def _has_joined() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _leave(joined_before: bool) -> None:
    if _has_joined() and not joined_before:
        sys.modules["torch.distributed"].destroy_process_group()
