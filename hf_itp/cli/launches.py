"""How the program leaves a launch that it has joined."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def launch_left() -> Iterator[None]:
    """
    Leaves, after work that succeeded, the launch that this work has joined, as a script does by
    `accelerator.end_training()`: threads of gloo that live on while Python ends may abort the process. After a failure
    the process just ends, for the others may wait in the middle of a message. Imports no torch.
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
