"""
Draw and score reference responses: for any number of prompts, in any number of processes, resumable after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_itp.distributed.processes import launched_processes
from hf_itp.errors import ArgumentError, ScoringError
from hf_itp.pools.journal import ReferencePool
from hf_itp.pools.schema import Row
from hf_itp.rewards.base import Prompt, RewardFunction
from hf_itp.rewards.logs import DROPPED
from hf_itp.rewards.values import or_none
from hf_itp.sampling.description import DrawDescription
from hf_itp.sampling.drawing import draw_described
from hf_itp.sampling.sampler import forwards_are_synchronized
from hf_itp.sampling.streams import derived_seed
from hf_itp.sampling.thinking import rewards_where_said

# Responses drawn between two writes: the maximum that a kill loses, and enough for a batch.
_RESPONSES_PER_WRITE = 64


def draw_references(
    policy: PreTrainedModel,
    description: DrawDescription,
    reward: RewardFunction,
    prompts: Sequence[Prompt],
    num_reference: int,
    *,
    seed: int,
    settings: dict[str, Any],
    columns: Mapping[str, Sequence[Any]] | None = None,
    output_dir: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> list[Row]:
    """
    Return `num_reference` responses per prompt with their rewards, in the order of the prompts. Under `accelerate
    launch` the processes share the prompts, wait for one another, and each returns all rows.

    Args:
        description ([`DrawDescription`]): How they are drawn.
        settings (`dict`): Everything that decides what is drawn. A pool with other settings is refused.
        columns (`dict[str, list]`, *optional*): Further columns for the reward, one entry per prompt.
        output_dir (`str` or `Path`, *optional*): Folder of the pool, seen by all processes. By default the rows are
            only in memory, and one process draws them.

    Raises:
        `ScoringError`: If the reward fails. What was drawn is in the pool, and is scored without another draw when the
            call is made again.
    """
    state = PartialState()
    if output_dir is None:
        if state.num_processes > 1:
            raise ArgumentError(
                f"`output_dir` must be given where {state.num_processes} processes share the prompts, got None. Pass "
                "a folder that all of them see."
            )
        with TemporaryDirectory() as folder:
            return draw_references(
                policy, description, reward, prompts, num_reference, seed=seed, settings=settings, columns=columns,
                output_dir=folder, batch_size=batch_size, progress=progress,
            )  # fmt: skip
    processes = launched_processes()
    pool = processes.gather(lambda: ReferencePool(Path(output_dir), settings, processes.rank))[processes.rank]
    # The same prompts share a batch whatever was drawn before, so that rounding is that of an uninterrupted run.
    size = max(1, math.ceil(_RESPONSES_PER_WRITE / num_reference))
    chunks = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    # No process writes before all have read, and all use what the first has read.
    found = processes.gather(lambda: {index: "rewards" in row for index, row in pool.rows().items()})[0]
    done = {index for index, scored in found.items() if scored}
    # Drawn by a run whose reward failed.
    unscored = {index: row for index, row in pool.rows().items() if index in found and index not in done}
    missing = [chunk for chunk in chunks if any(index not in done for index in chunk)]
    mine = missing[processes.rank :: processes.size]
    # Sharded weights are gathered in each forward pass, so every process must make equally many.
    in_step = processes.size > 1 and forwards_are_synchronized(policy)
    derived = derived_seed(seed, "references")

    def draw(places: Sequence[int]) -> list[list[torch.Tensor]]:
        chosen = [prompts[place] for place in places]
        if not in_step and all(place in unscored for place in places):
            return [
                [torch.tensor(ids, dtype=torch.long) for ids in unscored[place]["response_ids"]] for place in places
            ]
        return draw_described(
            policy, description, chosen, num_reference, seed=derived, batch_size=batch_size, progress=False
        )

    def keep(chunk: range, drawn: list[list[torch.Tensor]]) -> None:
        """Score and write the responses to a chunk; ignore further ones, drawn only for the forward passes."""
        if not chunk:
            return
        drawn = drawn[: len(chunk)]
        chosen = [prompts[index] for index in chunk]
        readers = [description.reader(prompt) for prompt in chosen]
        texts = [read(ids.tolist()) for read, own in zip(readers, drawn, strict=True) for ids in own]
        everything = [response for own in drawn for response in own]
        rows: list[Row] = [
            {
                "index": index,
                "prompt": prompts[index],
                "responses": [readers[position].full(response.tolist()) for response in drawn[position]],
                "response_ids": [response.tolist() for response in drawn[position]],
                **({"chat_template_kwargs": own} if (own := description.own_arguments_of(prompts[index])) else {}),
            }
            for position, index in enumerate(chunk)
        ]

        def score(said: list[int]) -> torch.Tensor:
            of_rows = [chunk[place // num_reference] for place in said]
            further: dict[str, Any] = {
                name: [column[row] for row in of_rows] for name, column in (columns or {}).items()
            }
            return reward.rewards_of(
                [prompts[row] for row in of_rows],
                [texts[place] for place in said],
                [everything[place] for place in said],
                further | DROPPED,
            )

        try:
            rewards = rewards_where_said(texts, score).view(len(chosen), num_reference)
        except Exception as error:
            pool.append(row for row in rows if row["index"] not in found)
            held = {index: row["response_ids"] for index, row in pool.rows().items()}
            candidates = [
                [torch.tensor(ids, dtype=torch.long) for ids in held.get(index, [])] for index in range(len(prompts))
            ]
            raise ScoringError.of(error, reward.name, candidates) from error
        pool.append(
            {**row, "rewards": or_none(own)}
            for row, own in zip(rows, rewards, strict=True)
            if row["index"] not in done
        )

    with transformers_logging.tqdm(
        total=len(prompts),
        initial=len(prompts) - sum(map(len, missing)),
        desc="Drawing references",
        unit=" prompts",
        disable=None if progress is None else not progress,
    ) as bar:

        def work() -> None:
            for chunk in mine:
                keep(chunk, draw(chunk))
                bar.update(len(chunk) * processes.size)

        if in_step:
            # As many draws of as many prompts: a process with too few of its own repeats another, only for the forward
            # passes.
            for turn in range(math.ceil(len(missing) / processes.size)):
                own = mine[turn] if turn < len(mine) else range(0)
                places = [*own, *[missing[0][0]] * (size - len(own))]
                # Only the launcher can tell the others that a draw failed: they wait in a forward pass.
                processes.gather(partial(keep, own, draw(places)))
                bar.update(len(own) * processes.size)
        else:
            processes.gather(work)

    def finish() -> list[Row]:
        rows = pool.rows()
        pool.finish()
        return [rows[index] for index in range(len(prompts))]

    return processes.gather(finish if processes.rank == 0 else list)[0]


def check_lengths(policy: PreTrainedModel, description: DrawDescription, prompts: Sequence[Prompt]) -> None:
    """
    Check that prompts and responses fit into the policy's positions.

    Raises:
        `ArgumentError`: If a prompt and its response would be longer than the policy's positions, or the chat template
            refuses a prompt.
    """
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        length = len(description.prompt_ids(prompt))
        longest = description.limit(length)
        if positions and longest > positions:
            raise ArgumentError(
                f"Prompt {number} in `prompts` must fit into the policy's {positions} positions together with its "
                f"response, got {length} tokens and max_new_tokens={longest - length}. Shorten or drop it, or lower "
                "`max_new_tokens`."
            )
        if longest <= length:
            raise ArgumentError(
                f"Prompt {number} in `prompts` must leave room for a response below max_length={longest}, got "
                f"{length} tokens. Shorten or drop it, or pass `max_new_tokens` instead."
            )
