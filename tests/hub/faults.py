"""Let requests to the loopback Hub go wrong."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """
    Fault that meets some of the next requests.

    Args:
        method (`str`), path (`str`): Requests it meets, with the path as a regular expression.
        status (`int`, *optional*): Status to answer instead of the right one.
        times (`int`): Number of requests it meets.
        seconds (`float`): Time each request is kept waiting.
        truncated (`bool`): Whether the connection ends in the middle of the answer.
    """

    method: str
    path: str
    status: int | None = None
    times: int = 1
    seconds: float = 0.0
    truncated: bool = False


class Faults:
    """List of faults, each removed after it has met its number of requests."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str, path: str, **what: object) -> None:
        self._faults.append(Fault(method, path, **what))  # type: ignore[arg-type]

    def clear(self) -> None:
        self._faults.clear()

    def next(self, method: str, path: str) -> Fault | None:
        """Return the fault that meets this request, and count it as used."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None
