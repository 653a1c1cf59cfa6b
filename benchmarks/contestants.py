"""
Contestants: each is built once in a process of its own, warmed up, and then makes one pass per seed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.memory import peak_bytes
from benchmarks.operations import matrix_product_rate
from benchmarks.workloads import STRATEGIES, Workload


class NotPossible(Exception):
    """Reason why a contestant cannot do a workload on this machine."""


class Contestant(ABC):
    """
    One way of doing the work.

    Args:
        workload ([`Workload`]): The work.
        options (`dict`): `model`, `reward_model`, `device`, `dtype`, `threads`, as on the command line.

    Raises:
        [`NotPossible`]: If it cannot be done here.
    """

    def __init__(self, workload: Workload, options: dict[str, Any]):
        self.workload, self.options = workload, options
        self.device = torch.device(options["device"])

    def warm_up(self) -> None:  # noqa: B027  not all need it
        """Do what happens once per process and does not count."""

    @abstractmethod
    def run(self, seed: int) -> dict[str, Any]:
        """Make one pass and return its measurements, at least `seconds`."""

    @contextmanager
    def timed(self, result: dict[str, Any], stage: str = "") -> Iterator[None]:
        """Add the seconds and the peak memory of the block to `result`."""
        prefix = f"{stage}_" if stage else ""
        self.synchronize()
        started = time.perf_counter()
        yield
        self.synchronize()
        result[f"{prefix}seconds"] = time.perf_counter() - started
        result[f"{prefix}peak_bytes"] = peak_bytes(self.device)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Machine(Contestant):
    """The machine multiplying large matrices: the rate that all others are compared with."""

    def warm_up(self) -> None:
        self.run(seed=0)

    def run(self, seed: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        with self.timed(result):
            rate = matrix_product_rate(self.device, getattr(torch, self.options["dtype"]))
        return {**result, "operations_per_second": rate}


class Selection(Contestant):
    """One strategy, on rewards of many prompts at once."""

    def __init__(self, workload: Workload, options: dict[str, Any], name: str):
        import hf_itp

        super().__init__(workload, options)
        self._strategy = hf_itp.get_strategy(name, **STRATEGIES[name])

    def warm_up(self) -> None:
        self._strategy.select(torch.rand(2, self.workload.candidates))

    def run(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.randn(self.workload.prompts, self.workload.candidates, generator=generator)
        result: dict[str, Any] = {}
        with self.timed(result):
            self._strategy.select(rewards, generator=generator)
        return result
