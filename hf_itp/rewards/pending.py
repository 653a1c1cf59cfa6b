"""
Rewards that are still to be awaited: those of asynchronous reward functions.

They run in one event loop for the whole process, in a thread of its own, as in TRL's trainers. So clients that a
judge keeps open stay usable from call to call, callers may be in a running loop themselves (a notebook), and the
caller's loop is left alone.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Pending:
    """
    Awaitable of several rewards at once, and of what becomes of them.

    Args:
        begun (`list`): Values, and awaitables of values.
        finish (`Callable`): Called with the list of all values.
    """

    begun: Sequence[Any]
    finish: Callable[[list[Any]], Any]

    def __await__(self) -> Generator[Any, None, Any]:
        return self._finished().__await__()

    def close(self) -> None:
        """Give up what nobody will await, without Python's warning of that."""
        close_all(self.begun)

    async def _finished(self) -> Any:
        # All end before the first failure is raised: none goes on in the background.
        values = await asyncio.gather(*map(_value, self.begun), return_exceptions=True)
        for value in values:
            if isinstance(value, BaseException):
                raise value
        return self.finish(values)


Begun = torch.Tensor | Pending
"""Rewards, or an awaitable of them."""


def all_of(begun: Sequence[Any], finish: Callable[[list[Any]], Any]) -> Any:
    """Return `finish(values)`, or an awaitable of it if one of the values is still to be awaited."""
    return Pending(begun, finish) if any(map(inspect.isawaitable, begun)) else finish(list(begun))


def close_all(begun: Sequence[Any]) -> None:
    """Give up those of the values that are still to be awaited."""
    for one in begun:
        if inspect.iscoroutine(one) or isinstance(one, Pending):
            one.close()


def finished(begun: Any) -> Any:
    """Return rewards, awaited if need be. Blocks the calling thread, whether or not it has a running loop."""
    if not inspect.isawaitable(begun):
        return begun
    if threading.current_thread() is _thread:
        # A reward that calls another one blocks the loop that it runs in, so the other needs one of its own.
        with ThreadPoolExecutor(max_workers=1) as executor:
            return executor.submit(asyncio.run, _value(begun)).result()
    future = asyncio.run_coroutine_threadsafe(_value(begun), _running_loop())
    try:
        return future.result()
    except BaseException:  # such as Ctrl-C: what it waits for ends too
        future.cancel()
        raise


async def _value(begun: Any) -> Any:
    return await begun if inspect.isawaitable(begun) else begun


_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _starting:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="hf_itp_rewards", daemon=True)
            _thread.start()
        return _loop


def _forget_loop() -> None:
    """Start anew in a forked process, which has none of its parent's threads."""
    global _loop, _thread, _starting
    _starting, _loop, _thread = threading.Lock(), None, None


@atexit.register
def _end_loop() -> None:
    loop, thread = _loop, _thread
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=1)
        if not thread.is_alive():
            loop.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_loop)
