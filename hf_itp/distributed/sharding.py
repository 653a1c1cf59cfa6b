"""
Split the candidates of a call over the processes of a launch, and exchange what they drew.

A candidate is a function of the seed, its prompt and its index, so a process draws its own part as if it drew
everything. Rewards are exchanged, and every process selects from the whole pool; the tokens of the winners follow.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Protocol

import torch

from hf_itp.distributed.processes import Processes
from hf_itp.errors import ArgumentError, ItpWarning, UnsupportedModelError
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.loop import Review
from hf_itp.sampling.row_calls import Pair, rows_are_independent
from hf_itp.sampling.sampler import forwards_are_synchronized

SHARDS = ("candidates", "prompts")


class Source(Protocol):
    """Draw and score candidates, each named by its prompt and its index."""

    seconds: dict[str, float]
    """Time spent, by stage."""

    def draw(self, pairs: list[Pair], review: Callable[[list[Pair]], Review] | None = None) -> list[torch.Tensor]:
        """Return the response of each pair, cut short where a review says so."""
        ...

    def score(self, pairs: list[Pair], responses: list[torch.Tensor]) -> torch.Tensor:
        """Return the rewards `(len(pairs),)` of responses."""
        ...


class Sharding:
    """
    One call's split over the processes of a launch.

    Args:
        processes ([`Processes`]): What shares the work.
        shard (`str`): `"candidates"` splits each prompt's candidates, `"prompts"` the batch. Where rows depend on one
            another, candidates are split whichever was asked for, so that each process has all prompts.
        call ([`DecodingCall`]): The whole batch.
    """

    def __init__(self, processes: Processes, shard: str, call: DecodingCall):
        if processes.size == 1:
            warnings.warn(
                f"`shard` is {shard!r}, but there is one process, which draws everything. Start several, e.g. with "
                "`accelerate launch --multi_gpu --num_processes 2` (on CPUs too, with ACCELERATE_USE_CPU=true), or "
                "leave `shard` out.",
                ItpWarning,
                stacklevel=2,
            )
        elif (size := getattr(call.model, "tp_size", None) or 1) > 1:
            raise UnsupportedModelError(
                f"`shard` must come with a policy that each process can run by itself, got one split over {size} by "
                "tensor parallelism, whose processes draw everything together. Leave `shard` out."
            )
        self.processes, self._num_prompts = processes, len(call)
        self._rows_are_independent = rows_are_independent(call.logits_processor, call.stopping_criteria)
        self._by_prompt = shard == "prompts" and self._rows_are_independent
        # Sharded weights are gathered in each forward pass, so every process must make the same ones.
        self.in_step = processes.size > 1 and forwards_are_synchronized(call.model)
        self.rows = list(range(len(call)))
        """The prompts this process has."""
        if processes.size > 1 and self._by_prompt and not self.in_step and call.is_rowwise:
            # A process without a prompt still needs one to have a decoder for.
            self.rows = [row for row in self.rows if self.owner(row, 0) == processes.rank] or [0]

    def owner(self, prompt: int, candidate: int) -> int:
        """Return the process that draws a candidate."""
        size = self.processes.size
        if self._by_prompt:
            return ((prompt + 1) * size - 1) // self._num_prompts
        # Starting each prompt at another process spreads the remainders of all prompts evenly. Rows that depend on
        # one another are drawn with all prompts at once, by one process.
        return (candidate + prompt if self._rows_are_independent else candidate) % size

    def agree(self, seed: int, request: dict[str, Any]) -> int:
        """
        Return the seed of process 0, once all processes are known to ask for the same.

        Raises:
            `ArgumentError`: On every process, if two of them differ in an entry of `request`.
        """
        digests = {name: blake2b(repr(value).encode(), digest_size=16).digest() for name, value in request.items()}
        answers = self.processes.gather(lambda: (seed, digests))
        for rank, (_, other) in enumerate(answers):
            for name, value in answers[0][1].items():
                if other[name] != value:
                    raise ArgumentError(
                        f"`{name}` must be the same in every process with `shard`, got another in process {rank} than "
                        "in process 0: their candidates would not belong together. Give every process the whole "
                        "batch and the same arguments, or leave `shard` out where each has prompts of its own."
                    )
        return answers[0][0]

    def part(self, call: DecodingCall) -> DecodingCall:
        """Return the call for this process's prompts; only process 0 shows a progress bar."""
        own = call if len(self.rows) == len(call) else call.rows(self.rows)
        return own if self.processes.rank == 0 else replace(own, progress=False)


class ShardedSource:
    """
    Draw and score this process's part, and exchange it with the others.

    Args:
        source ([`Source`]): Draws and scores for this process's prompts, counted from 0.
        sharding ([`Sharding`]): Which part that is.
    """

    def __init__(self, source: Source, sharding: Sharding):
        self._source, self._sharding, self.seconds = source, sharding, source.seconds
        self._processes = sharding.processes

    def collect(self, pairs: list[Pair]) -> tuple[dict[Pair, torch.Tensor], torch.Tensor]:
        """Draw and score `pairs`; return the responses drawn here, and the rewards `(len(pairs),)` of all."""
        started, before = time.perf_counter(), sum(self.seconds.values())
        owners = [self._sharding.owner(*pair) for pair in pairs]
        mine = [pair for pair, owner in zip(pairs, owners, strict=True) if owner == self._processes.rank]
        asked = [(self._sharding.rows.index(prompt), candidate) for prompt, candidate in mine]
        drawn: list[torch.Tensor] = []
        if self._sharding.in_step:
            # As many as the process with most: the surplus is drawn only for its forward passes. A failure
            # reaches the others through the launcher, since they wait in a forward pass.
            most = max(owners.count(rank) for rank in range(self._processes.size))
            drawn += self._source.draw(asked + pairs[:1] * (most - len(asked)))[: len(mine)]

        def work() -> list[float]:
            if not self._sharding.in_step:
                drawn.extend(self._source.draw(asked))
            return self._source.score(asked, drawn).tolist()

        everyones = [iter(part) for part in self._processes.gather(work)]
        rewards = torch.tensor([next(everyones[owner]) for owner in owners], dtype=torch.float32)
        worked = sum(self.seconds.values()) - before
        if self._processes.size > 1:
            self.seconds["waiting"] = self.seconds.get("waiting", 0.0) + time.perf_counter() - started - worked
        return dict(zip(mine, drawn, strict=True)), rewards

    def fetch(self, pairs: Sequence[Pair], held: dict[Pair, torch.Tensor]) -> dict[Pair, torch.Tensor]:
        """Return the responses of `pairs`, each sent by the process that holds it."""
        if self._processes.size == 1:
            return held
        # As lists: a slice of a tensor is pickled with all that it is a slice of.
        parts = self._processes.gather(lambda: {pair: held[pair].tolist() for pair in pairs if pair in held})
        return {pair: torch.tensor(ids, dtype=torch.long) for part in parts for pair, ids in part.items()}
