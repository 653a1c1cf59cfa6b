"""
Contestants in processes of their own that take turns, A B C A B C, so that all meet the same noise.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.workloads import PACKAGES, Workload

_ROOT = Path(__file__).parent.parent
_TIME_IS_UP = "the time was up"


@dataclass
class Entry:
    """Measurements of one contestant in one workload: a dict per pass, or why there is none."""

    contestant: str
    passes: list[dict[str, Any]] = field(default_factory=list)
    skipped: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Turns:
    """
    Run workloads, one pass of each contestant in turn.

    Args:
        options (`dict`): Options of every contestant.
        repeats (`int`): Passes per contestant.
        patience (`float`): Contestants whose pass is expected to take more seconds are skipped.
        deadline (`float`, *optional*): Point of `time.monotonic()` after which nothing new starts.
        say (`Callable`): Gets lines of progress.
    """

    def __init__(
        self,
        options: dict[str, Any],
        repeats: int,
        patience: float,
        deadline: float | None,
        say: Callable[[str], None],
    ):
        self._options, self._repeats, self._patience, self._deadline = options, repeats, patience, deadline
        self._say = say
        self._history: list[tuple[str, Workload, float]] = []
        self._machine_child: Child | None = None

    def run(self, workload: Workload, contestants: Sequence[str]) -> list[Entry]:
        """Measure every contestant, and the machine's own rate in each round; return one entry per contestant."""
        self._say(f"{workload.name}: starting {', '.join(contestants)}")
        entries = {name: Entry(name) for name in contestants}
        expected = {name: self._expected_seconds(name, workload) for name in (*contestants, "machine")}
        for name, entry in entries.items():
            if self._time_is_up(expected[name]):
                entry.skipped = _TIME_IS_UP
            elif find_spec(PACKAGES.get(name, "benchmarks")) is None:
                entry.skipped = f"the package {PACKAGES[name]} is not installed"
            elif expected[name] > self._patience:
                entry.skipped = f"about {expected[name]:.0f} s a pass, more than --patience {self._patience:g}"
        children = {name: Child(name, workload, self._options) for name, entry in entries.items() if not entry.skipped}
        try:
            for name, child in children.items():
                self._exchange(entries[name], child, None)
            if children:
                entries["machine"], children["machine"] = Entry("machine"), self._machine(workload)
                self._take_turns(workload, entries, children, expected)
        finally:
            for name, child in children.items():
                if name != "machine":
                    child.close()
        for entry in entries.values():
            if entry.skipped:
                self._say(f"{workload.name}: without {entry.contestant}: {entry.skipped}")
        return list(entries.values())

    def close(self) -> None:
        """End the process that outlives a workload."""
        if self._machine_child is not None:
            self._machine_child.close()

    def _machine(self, workload: Workload) -> Child:
        if self._machine_child is None or not self._machine_child.is_alive():
            self._machine_child = Child("machine", workload, self._options)
            self._machine_child.answer(None)
        return self._machine_child

    def _time_is_up(self, seconds: float) -> bool:
        return self._deadline is not None and time.monotonic() + seconds > self._deadline

    def _take_turns(
        self, workload: Workload, entries: dict[str, Entry], children: dict[str, Child], expected: dict[str, float]
    ) -> None:
        longest_round = 0.0
        for repeat in range(self._repeats):
            if repeat > 0 and self._time_is_up(longest_round):
                self._say(f"{workload.name}: {repeat} of {self._repeats} repeats, the time is up")
                return
            started = time.monotonic()
            for name, child in children.items():
                entry = entries[name]
                if not entry.skipped and repeat == 0 and self._time_is_up(expected[name]):
                    entry.skipped = _TIME_IS_UP
                if entry.skipped:
                    continue
                self._exchange(entry, child, {"seed": repeat})
                if not entry.skipped and name != "machine":
                    seconds = entry.passes[-1]["seconds"]
                    self._history.append((name, workload, seconds))
                    self._say(f"{workload.name}: repeat {repeat + 1} of {self._repeats}, {name}: {seconds:.2f} s")
            longest_round = max(longest_round, time.monotonic() - started)

    def _exchange(self, entry: Entry, child: Child, request: dict[str, Any] | None) -> None:
        load = os.getloadavg()[0]
        answer = child.answer(request)
        if "not_possible" in answer or "error" in answer:
            entry.skipped = answer.get("not_possible") or f"failed: {answer['error']}"
        elif request is None:
            entry.facts = answer
        else:
            entry.passes.append({**request, **answer, "load_average": load})

    def _expected_seconds(self, name: str, workload: Workload) -> float:
        """Estimate from the last pass of the most similar workload, in proportion to the tokens to draw."""
        known = [(past, seconds) for who, past, seconds in self._history if who == name and past.kind == workload.kind]
        if not known:
            return 0.0
        past, seconds = min(
            reversed(known), key=lambda pair: (abs(pair[0].prompt_tokens - workload.prompt_tokens), -_work(pair[0]))
        )
        return seconds * _work(workload) / _work(past)


class Child:
    """The process of one contestant, idle between requests."""

    def __init__(self, contestant: str, workload: Workload, options: dict[str, Any]):
        threads = str(options["threads"])
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=_ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask({"contestant": contestant, "workload": workload.name, "options": options})

    def answer(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Return the answer of the process to `request`, or to its start if there is none."""
        if request is not None:
            self._ask(request)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        reason = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        hint = ", mostly for lack of memory" if code == -signal.SIGKILL else ""
        return {"error": f"the process was ended {reason}{hint}"}

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()  # it has nothing to save
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says that it ended
            print(json.dumps(request), file=self._process.stdin, flush=True)


def _work(workload: Workload) -> int:
    return workload.prompts * workload.candidates * max(1, workload.max_new_tokens)
