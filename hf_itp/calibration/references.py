"""
Drawing and scoring of reference responses: any number of prompts, any number of processes, killed and taken up again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hf_itp.calibration.reference_pool import ReferencePool, Row
from hf_itp.errors import ArgumentError
from hf_itp.rewards.base import Prompt, RewardFunction
from hf_itp.sampling.drawing import draw_responses, prompt_ids
from hf_itp.sampling.streams import derived_seed
from hf_itp.sampling.text import ResponseReader

# Responses drawn between two writes: what a kill costs at most, and enough for a batch.
_RESPONSES_PER_WRITE = 64


def draw_references(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardFunction,
    prompts: Sequence[Prompt],
    num_reference: int,
    *,
    seed: int,
    settings: dict[str, Any],
    output_dir: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **sampling: Any,
) -> list[Row]:
    """
    `num_reference` responses per prompt with their rewards, in the order of the prompts. Under `accelerate launch`
    the processes share the prompts, and each returns all rows.

    Args:
        settings (`dict`): All that decides what is drawn; rows under other settings are not taken up.
        output_dir (`str` or `Path`, *optional*): Where the pool is kept. A folder all processes see. Without it the
            rows are in memory alone, and one process draws them.
        sampling: Keywords of `generate`.
    """
    state = PartialState()
    if output_dir is None:
        if state.num_processes > 1:
            raise ArgumentError(
                f"`output_dir` has to be given where {state.num_processes} processes share the prompts, but is None. "
                "Pass a folder that all of them see."
            )
        with TemporaryDirectory() as folder:
            return draw_references(
                policy, tokenizer, reward, prompts, num_reference, seed=seed, settings=settings, output_dir=folder,
                batch_size=batch_size, progress=progress, **sampling,
            )  # fmt: skip
    pool = ReferencePool(Path(output_dir), settings, state.process_index)
    # The same prompts go together whatever was there before, so that a batch's rounding is that of an unbroken run.
    size = max(1, math.ceil(_RESPONSES_PER_WRITE / num_reference))
    chunks = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    done, derived = pool.rows(), derived_seed(seed, "references")
    state.wait_for_everyone()  # nobody writes before everybody has read
    missing = [chunk for chunk in chunks if any(index not in done for index in chunk)]
    mine = missing[state.process_index :: state.num_processes]
    with transformers_logging.tqdm(
        total=len(prompts),
        initial=len(prompts) - sum(map(len, missing)),
        desc="Drawing references",
        unit=" prompts",
        disable=None if progress is None else not progress,
    ) as bar:
        for chunk in mine:
            chosen = [prompts[index] for index in chunk]
            drawn = draw_responses(
                policy,
                tokenizer,
                chosen,
                num_reference,
                seed=derived,
                batch_size=batch_size,
                progress=False,
                **sampling,
            )
            readers = [ResponseReader(tokenizer, prompt_ids(tokenizer, prompt)) for prompt in chosen]
            responses = [[read(ids.tolist()) for ids in own] for read, own in zip(readers, drawn, strict=True)]
            rewards = reward(
                [prompt for prompt in chosen for _ in range(num_reference)],
                [response for texts in responses for response in texts],
                [response for ids in drawn for response in ids],
            ).view(len(chosen), num_reference)
            pool.append(
                {
                    "index": index,
                    "prompt": prompts[index],
                    "responses": responses[position],
                    "response_ids": [response.tolist() for response in drawn[position]],
                    "rewards": rewards[position].tolist(),
                }
                for position, index in enumerate(chunk)
                if index not in done
            )
            bar.update(len(chunk) * state.num_processes)
    state.wait_for_everyone()
    rows = pool.rows() if state.is_main_process else {}
    if state.is_main_process:
        pool.finish()
    state.wait_for_everyone()
    if state.num_processes > 1:
        rows = {row["index"]: row for row in gather_object(list(rows.values()))}
    return [rows[index] for index in range(len(prompts))]


def check_lengths(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int
) -> None:
    """
    Raises:
        `ArgumentError`: If a prompt and its response would be longer than the policy's positions.
    """
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if not positions:
        return
    for number, prompt in enumerate(prompts):
        length = len(prompt_ids(tokenizer, prompt))
        if length + max_new_tokens > positions:
            raise ArgumentError(
                f"Prompt {number} in `prompts` has {length} tokens, with max_new_tokens={max_new_tokens} more than "
                f"the policy's {positions} positions. Shorten or drop it, or lower `max_new_tokens`."
            )
