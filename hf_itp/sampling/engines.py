"""
Who runs the forward passes: our own loop, or transformers' continuous batching.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import transformers

from hf_itp.errors import ArgumentError, MissingDependencyError
from hf_itp.sampling.paged_support import why_no_pages
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


def make_engine(engine: str, **arguments: Any) -> tuple[Engine, dict[str, str]]:
    """
    Who draws for one call of `generate`, and what the diagnostics say of it: `engine`, `engine_reason` and `path`.

    Args:
        engine (`str`): One of `ENGINES`.
        **arguments: What [`CandidateSampler`] takes.

    Raises:
        `ItpError`: Of the kind that fits, if continuous batching is asked for and cannot do what the call asks.
    """
    sampler = _paged_sampler(arguments) if engine == "paged" else CandidateSampler(**arguments)
    name = "native" if engine == "auto" else engine
    if engine == "auto":
        reason = reason_for_native(sampler.path, arguments["model"], arguments["input_ids"].device)
    else:
        reason = "the caller asked for it"
    return sampler, {"engine": name, "engine_reason": reason, "path": sampler.path}


def reason_for_native(path: str, model: Any, device: torch.device) -> str:
    """
    Why the default is our own loop. It shares the prompt for every model continuous batching can run, so there is
    none that the other engine alone would serve well.
    """
    if path != "shared" and (obstacle := why_no_pages(model)) is not None:
        return f"engine='paged' cannot run {type(model).__name__}: {obstacle}"
    how = "a prompt's keys and values are kept once for all its candidates" if path == "shared" else f"path {path!r}"
    if device.type == "cpu":
        return f"{how}; measured to be faster than 'paged' on CPUs"
    return f"{how}; which engine is faster on {device.type} devices is not measured"


def _paged_sampler(arguments: dict[str, Any]) -> Engine:
    try:
        # Reaches into continuous batching, which transformers still moves about.
        from hf_itp.sampling.paged import PagedSampler
    except ImportError as error:
        raise MissingDependencyError(
            f"engine='paged' needs continuous batching as transformers 5.23 has it, but {transformers.__version__} "
            "is installed. Install transformers==5.23.*, or pass engine='native'."
        ) from error
    return PagedSampler(**arguments)
