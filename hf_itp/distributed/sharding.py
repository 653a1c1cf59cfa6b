"""
Which candidates of a call each process of a launch draws, and how all come to know what was drawn.

A candidate is a function of the seed, its prompt and its index, so a process draws its own part as if it drew
everything. Rewards are exchanged, and every process selects from the whole pool; the tokens of the winners follow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeVar

import torch

from hf_itp.distributed.processes import Processes, launched_processes
from hf_itp.errors import ArgumentError, ItpWarning, UnsupportedModelError
from hf_itp.models.host_names import CACHE_NAMES
from hf_itp.sampling.decoders import select_rows
from hf_itp.sampling.sampler import forwards_are_synchronized
from hf_itp.sampling.token_sampler import TokenSampler

Sampler = TypeVar("Sampler")
Pair = tuple[int, int]
"""A prompt (its row) and the index of one of its candidates."""

SHARDS = ("candidates", "prompts")

# Inputs with one row per prompt. Others (pictures, say) may have any number, so no part can be cut out of them.
_ROWWISE_INPUTS = {
    "attention_mask",
    "decoder_attention_mask",
    "decoder_input_ids",
    "encoder_outputs",
    "position_ids",
    "token_type_ids",
    *CACHE_NAMES,
}


class Sharding:
    """
    One call's split over the processes of a launch.

    Args:
        shard (`str`, *optional*): `"candidates"` splits each prompt's candidates, `"prompts"` the batch, `None`
            nothing: this process then works alone.
        model (`PreTrainedModel`): The policy.
        num_prompts (`int`): Rows of the batch.
        rows_are_independent (`bool`): Whether rows may be drawn one without another
            ([`~sampling.row_calls.rows_are_independent`]). Where they may not, candidates are split
            whatever was asked for, so that each process has all prompts.
    """

    def __init__(self, shard: str | None, model: Any, num_prompts: int, rows_are_independent: bool):
        self.processes = Processes() if shard is None else launched_processes()
        if shard is not None and self.processes.size == 1:
            warnings.warn(
                f"`shard` is {shard!r}, but there is one process, which draws everything. Start several, e.g. with "
                "`accelerate launch --multi_gpu --num_processes 2` (on CPUs too, with ACCELERATE_USE_CPU=true), or "
                "leave `shard` out.",
                ItpWarning,
                stacklevel=2,
            )
        self._by_prompt = shard == "prompts" and rows_are_independent
        self._rows_are_independent = rows_are_independent
        self._num_prompts = num_prompts
        self._rows = list(range(num_prompts))
        # Sharded weights are gathered in each forward pass, so every process has to make the same ones.
        self._in_step = self.processes.size > 1 and forwards_are_synchronized(model)
        if self.processes.size > 1 and (getattr(model, "tp_size", None) or 1) > 1:
            raise UnsupportedModelError(
                f"`shard` needs a policy that each process can run alone, but this one is split over {model.tp_size} "
                "by tensor parallelism, whose processes draw everything together. Leave `shard` out."
            )

    @property
    def num_processes(self) -> int:
        """How many processes share the work."""
        return self.processes.size

    def owner(self, prompt: int, candidate: int) -> int:
        """The process that draws a candidate."""
        size = self.processes.size
        if self._by_prompt:
            return ((prompt + 1) * size - 1) // self._num_prompts
        # Starting each prompt at another process spreads the remainders of all prompts evenly. Rows that depend on
        # one another are drawn with all prompts at once, which one process has to do.
        return (candidate + prompt if self._rows_are_independent else candidate) % size

    def agree(self, seed: int, request: dict[str, Any]) -> int:
        """
        The seed of process 0, once it is known that all processes ask for the same.

        Raises:
            `ArgumentError`: On every process, if two of them differ in an entry of `request`.
        """
        answers = self.processes.gather(lambda: (seed, {name: _digest(value) for name, value in request.items()}))
        for rank, (_, other) in enumerate(answers):
            for name, value in answers[0][1].items():
                if other[name] != value:
                    raise ArgumentError(
                        f"`{name}` has to be the same in every process with `shard`, but differs between process 0 "
                        f"and process {rank}, so their candidates would not belong together. Give every process the "
                        "whole batch and the same arguments, or leave `shard` out where each has prompts of its own."
                    )
        return answers[0][0]

    def sampler(self, make: Callable[..., Sampler], **arguments: Any) -> Sampler:
        """`make(**arguments)` for this process's prompts, the arguments being those of a `CandidateSampler`."""
        if self.processes.size == 1:
            return make(**arguments)
        if self._by_prompt and not self._in_step and _is_rowwise(arguments["model_kwargs"]):
            rank = self.processes.rank
            # A process without a prompt still needs one to have a sampler for.
            self._rows = [row for row in self._rows if self.owner(row, 0) == rank] or [0]
            arguments |= self._narrowed(**arguments)
        if self.processes.rank != 0:
            arguments["progress"] = False
        if self._in_step:
            return make(**arguments)
        made: list[Sampler] = []
        self.processes.gather(lambda: made.append(make(**arguments)))
        return made[0]

    def collect(
        self,
        pairs: list[Pair],
        draw: Callable[[list[Pair]], list[torch.Tensor]],
        score: Callable[[list[Pair], list[torch.Tensor]], torch.Tensor],
    ) -> tuple[dict[Pair, torch.Tensor], torch.Tensor]:
        """
        Draws and scores this process's part of `pairs`: the responses it drew, and the rewards `(len(pairs),)` of all.

        Args:
            pairs (`list[tuple[int, int]]`): Prompts and indices of candidates.
            draw (`Callable`): Responses for pairs whose prompts count the sampler's.
            score (`Callable`): Rewards of pairs and their responses.
        """
        owners = [self.owner(*pair) for pair in pairs]
        mine = [pair for pair, owner in zip(pairs, owners, strict=True) if owner == self.processes.rank]
        asked = [(self._rows.index(prompt), candidate) for prompt, candidate in mine]
        if self._in_step:
            most = max(owners.count(rank) for rank in range(self.processes.size))
            # Drawn for the forward passes alone, and thrown away.
            idle = pairs[:1] * (most - len(asked))
            # A failure here reaches the others by the launcher: they wait in a forward pass, where they hear nothing.
            drawn = draw(asked + idle)[: len(mine)]
        else:
            drawn = []

        def work() -> list[float]:
            if not self._in_step:
                drawn.extend(draw(asked))
            return score(mine, drawn).tolist()

        everyones = [iter(part) for part in self.processes.gather(work)]
        return dict(zip(mine, drawn, strict=True)), torch.tensor(
            [next(everyones[owner]) for owner in owners], dtype=torch.float32
        )

    def exchange(self, wanted: list[Pair], held: dict[Pair, torch.Tensor]) -> dict[Pair, torch.Tensor]:
        """The responses to `wanted`, each sent by the process that holds it."""
        if self.processes.size == 1:
            return {pair: held[pair] for pair in wanted}
        # As lists: a slice of a tensor is pickled with all that it is a slice of.
        parts = self.processes.gather(lambda: {pair: held[pair].tolist() for pair in wanted if pair in held})
        return {pair: torch.tensor(ids, dtype=torch.long) for part in parts for pair, ids in part.items()}

    def _narrowed(self, *, input_ids: torch.Tensor, **arguments: Any) -> dict[str, Any]:
        index = torch.tensor(self._rows, dtype=torch.long, device=input_ids.device)
        token_sampler = TokenSampler(arguments["logits_processor"], bool(arguments["generation_config"].do_sample))
        return {
            "input_ids": input_ids[index],
            "logits_processor": token_sampler.for_rows(index).logits_processor,
            "model_kwargs": select_rows(arguments["model_kwargs"], index, len(input_ids)),
            "prompt_keys": [arguments["prompt_keys"][row] for row in self._rows],
        }


def _is_rowwise(model_kwargs: dict[str, Any]) -> bool:
    plain = (bool, int, float, str, type(None))
    return all(name in _ROWWISE_INPUTS or isinstance(value, plain) for name, value in model_kwargs.items())


def _digest(value: Any) -> str:
    return blake2b(repr(value).encode(), digest_size=16).hexdigest()
