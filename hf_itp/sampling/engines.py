"""
Who runs the forward passes: our own loop, or transformers' continuous batching.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hf_itp.errors import ArgumentError
from hf_itp.sampling.paged import PagedSampler
from hf_itp.sampling.sampler import CandidateSampler

ENGINES = ("auto", "native", "paged")


class Engine(Protocol):
    """Draws candidates for the prompts of one call of `generate`."""

    @property
    def path(self) -> str:
        """Which way the forward passes take, as the diagnostics say it."""
        ...

    def draw(self, candidates: list[tuple[int, int]]) -> list[torch.Tensor]:
        """One response per pair of a prompt (its row) and the index of a candidate."""
        ...


def check_engine(engine: str) -> None:
    """
    Raises:
        `ArgumentError`: If there is no engine of that name.
    """
    if engine not in ENGINES:
        raise ArgumentError(
            f"`engine` has to be one of {', '.join(map(repr, ENGINES))}, but is {engine!r}. Leave it out to have it "
            "chosen."
        )


def choose_engine(engine: str, device: torch.device) -> tuple[str, str]:
    """
    Name of the engine to use and why.

    Examples:

    ```python
    >>> import torch
    >>> choose_engine("auto", torch.device("cpu"))
    ('native', 'it is measured to be the faster one on CPUs')

    ```
    """
    if engine != "auto":
        return engine, "the caller asked for it"
    if device.type == "cpu":
        return "native", "it is measured to be the faster one on CPUs"
    return "native", f"which one is faster on {device.type} devices is not measured yet"


def make_engine(name: str, **arguments: Any) -> CandidateSampler | PagedSampler:
    """The engine of a name, made for one call of `generate`; both take what [`CandidateSampler`] takes."""
    return PagedSampler(**arguments) if name == "paged" else CandidateSampler(**arguments)
