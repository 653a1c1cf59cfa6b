"""
Draw candidates for the prompts of a call, in batches that fit into memory.

Knows nothing of rewards or strategies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import torch.distributed
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.fsdp import FSDPModule
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.utils import logging as transformers_logging

from hf_itp.errors import ItpWarning
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.cohort import Responses
from hf_itp.sampling.decoders import Decoder, make_decoder
from hf_itp.sampling.loop import Review, decode_rows
from hf_itp.sampling.row_calls import Pair, RowCalls
from hf_itp.sampling.streams import candidate_key
from hf_itp.sampling.token_sampler import TokenSampler

# Share of the free memory that a batch may plan for; the rest is for the pass itself and for other programs.
_MEMORY_SHARE = 0.5
# Copies of a row's float32 logits that exist at once while a token is drawn.
_LOGIT_COPIES = 8
# A progress bar on a call shorter than this is noise.
_SECONDS_BEFORE_A_BAR = 5.0


@dataclass
class CandidateSampler:
    """
    Draw candidates for the prompts of one call of `generate`.

    Args:
        call ([`DecodingCall`]): The prompts, and what their responses are drawn with.
    """

    call: DecodingCall
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = make_decoder(self.call)
        self._calls: RowCalls | None = None
        self._any_unfinished: Callable[[bool], bool] | None = None
        if forwards_are_synchronized(self.call.model):
            self._any_unfinished = lambda done: self.call.model._has_unfinished_sequences(
                done, synced_gpus=True, device=self.call.input_ids.device
            )

    @property
    def path(self) -> str:
        """How the forward passes treat the prompt: `"shared"`, `"expanded"` or `"repeated"`."""
        return self.decoder.path

    @property
    def path_reason(self) -> str:
        """Reason for the path, in a short sentence."""
        return self.decoder.path_reason

    def draw(
        self,
        candidates: list[Pair],
        review: Callable[[list[Pair]], Review] | None = None,
        on_batch: Callable[[list[Pair], list[torch.Tensor]], None] | None = None,
    ) -> list[torch.Tensor]:
        """
        Draw one response per candidate. A candidate gets the same response whatever else is drawn with it.

        Args:
            candidates (`list[Pair]`): Row of the prompt and candidate index of each. With `review`: prompt by prompt,
                equally many for each.
            review (`Callable`, *optional*): Makes the [`Review`] of a batch, given its candidates. All candidates of a
                prompt then share a batch, and one that ends early has the first tokens of the same response.
            on_batch (`Callable`, *optional*): Called with candidates and their responses whenever a batch of them is
                done: each candidate once, in any order. Not with `review`.

        Returns:
            `list[torch.LongTensor]`: Tokens of each response on the CPU, its end token included, without padding.

        Raises:
            `ArgumentError`: If a processor or criterion cannot be called as it must be ([`RowCalls`]).
            `DistributionError`: If the policy's logits are not a distribution.
        """
        call = self.call
        if self._calls is None:
            self._calls = RowCalls(call.logits_processor, call.stopping_criteria, len(call), len(candidates))
            self._calls.check(batch_size=call.batch_size, reviewed=review is not None)
        with _bar(len(candidates), call.progress) as bar:
            if review is not None:
                return self._draw_under_review(candidates, bar.update, review)
            if self._calls.rows_are_independent:
                return self._draw_freely(candidates, bar.update, on_batch)
            responses = self._draw_in_place(candidates, self._calls, bar.update)
        if on_batch is not None:
            on_batch(candidates, responses)
        return responses

    def _draw_freely(self, candidates: list[Pair], on_finished: Any, on_batch: Any) -> list[torch.Tensor]:
        """Draw as many rows at once as there is room for, then others as a new batch or in place of finished rows."""
        responses: Responses = [None] * len(candidates)
        waiting, size, rows = list(range(len(candidates))), self.call.batch_size or len(candidates), 0
        flows = self.decoder.rows_can_join and self._any_unfinished is None and not self._in_one_batch
        unseen = set(waiting) if on_batch is not None else set()

        def show(at_least: int) -> None:
            done = [(place, response) for place in sorted(unseen) if (response := responses[place]) is not None]
            if unseen and len(done) >= at_least:
                on_batch([candidates[place] for place, _ in done], [response for _, response in done])
                unseen.difference_update(place for place, _ in done)

        def finished(count: int) -> None:
            on_finished(count)
            show(at_least=rows)

        while waiting:
            rows = self._affordable(min(size, len(waiting)))
            chosen = waiting if flows else waiting[:rows]
            fewest = len(chosen) if self._in_one_batch else 1
            chunk = [candidates[place] for place in chosen]
            enough = self._decode(chunk, responses, finished, chosen, rows, fewest=fewest)
            size = size if enough else rows // 2
            waiting = [place for place in waiting if responses[place] is None]
        show(at_least=1)
        return _complete(responses)

    def _draw_under_review(self, candidates: list[Pair], on_finished: Any, review: Any) -> list[torch.Tensor]:
        """Draw all candidates of a prompt in one batch, since a review compares them."""
        responses: list[torch.Tensor] = []
        size = self.call.batch_size or len(candidates)
        unit = len(candidates) // len({prompt for prompt, _ in candidates})
        while len(responses) < len(candidates):
            rows = len(candidates) if self._in_one_batch else max(unit, self._affordable(size) // unit * unit)
            chunk = candidates[len(responses) : len(responses) + rows]
            drawn: Responses = [None] * len(chunk)
            if self._decode(
                chunk, drawn, on_finished, review=review(chunk), fewest=rows if self._in_one_batch else unit
            ):
                responses += _complete(drawn)
            else:
                size = len(chunk) // 2
        return responses

    def _draw_in_place(self, candidates: list[Pair], calls: RowCalls, on_finished: Any) -> list[torch.Tensor]:
        """Draw rows that stay in their place to the end, for processors and criteria that know rows by place."""
        pairs, indices = candidates, list(dict.fromkeys(index for _, index in candidates))
        if calls.by_candidate:
            # Such a processor or criterion must see every prompt; responses nobody asked for are thrown away.
            missing = [(prompt, index) for index in indices for prompt in range(len(self.call))]
            pairs = list(dict.fromkeys([*candidates, *missing]))
        drawn: dict[Pair, torch.Tensor] = {}
        size = self.call.batch_size or len(pairs)
        while len(drawn) < len(pairs):
            chunk = pairs
            if not calls.needs_one_batch:
                waiting = [index for index in indices if (pairs[0][0], index) not in drawn]
                count = max(1, self._affordable(size) // len(self.call))
                chunk = [pair for pair in pairs if pair[1] in waiting[:count]]
            responses: Responses = [None] * len(chunk)
            fewest = len(chunk) if calls.needs_one_batch else len(self.call)
            if self._decode(chunk, responses, on_finished, fewest=fewest, calls=calls):
                drawn.update(zip(chunk, _complete(responses), strict=True))
            else:
                size = len(chunk) // 2
        return [drawn[pair] for pair in candidates]

    def _decode(
        self,
        candidates: list[Pair],
        responses: Responses,
        on_finished: Any,
        places: list[int] | None = None,
        most_rows: int | None = None,
        *,
        review: Review | None = None,
        fewest: int = 1,
        calls: RowCalls | None = None,
    ) -> bool:
        """
        Decode `candidates`, `most_rows` at once, store their responses in `places`; return whether memory sufficed.

        Raise the error instead if memory does not suffice for `fewest` rows. With `calls`, rows stay where they are.
        """
        assert self._calls is not None
        call, device = self.call, self.call.input_ids.device
        processors = call.logits_processor
        criteria = StoppingCriteriaList([one for one in call.stopping_criteria if one not in self._calls.time_limits])
        pad_token = None
        if calls is not None:
            processors, criteria = calls.arranged(candidates)
            pad = call.generation_config._pad_token_tensor
            if pad is not None and any(hasattr(one, "eos_token_id") for one in call.stopping_criteria):
                pad_token = int(pad)
        keys = [candidate_key(call.prompt_keys[prompt], index) for prompt, index in candidates]
        try:
            cut = decode_rows(
                self.decoder,
                TokenSampler(processors, bool(call.generation_config.do_sample), rows_stay=calls is not None),
                criteria,
                call.input_ids,
                torch.tensor([prompt for prompt, _ in candidates], device=device),
                torch.tensor(keys, device=device),
                responses,
                places=None if places is None else torch.tensor(places, device=device),
                on_finished=on_finished,
                most_rows=most_rows,
                any_unfinished=self._any_unfinished,
                review=review,
                rows_stay=calls is not None,
                pad_token=pad_token,
                time_is_over=self._time_is_over if self._calls.time_limits else None,
            )
            if cut:
                warnings.warn(
                    f"`max_time` ended {cut} of {len(candidates)} responses early, so their rewards are those of "
                    "incomplete responses. Raise `max_time`, or draw fewer candidates.",
                    ItpWarning,
                    stacklevel=2,
                )
            return True
        except (RuntimeError, MemoryError) as error:
            out_of_memory = isinstance(error, MemoryError) or should_reduce_batch_size(error)
            rows = len(candidates) if most_rows is None else most_rows
            if not out_of_memory or rows <= fewest or self._any_unfinished is not None:
                raise
        # Outside of the `except` block, whose traceback would keep the tensors of the failed pass alive.
        clear_device_cache(garbage_collection=True)
        return False

    @property
    def _in_one_batch(self) -> bool:
        """Whether all rows must share a batch: only then does the clock end them at the same token."""
        return self._calls is not None and self._calls.needs_one_batch

    def _time_is_over(self) -> bool:
        assert self._calls is not None
        return any(bool(limit(self.call.input_ids, None).any()) for limit in self._calls.time_limits)

    def _affordable(self, size: int) -> int:
        if self._in_one_batch or self.call.batch_size is not None or self._any_unfinished is not None:
            return size
        device = self.call.input_ids.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        logits = self.call.model.config.get_text_config().vocab_size * 4 * _LOGIT_COPIES
        row = logits + self.decoder.bytes_per_row(self.call.generation_config.max_length)
        return max(1, min(size, int(free * _MEMORY_SHARE) // row))


def _bar(total: int, progress: bool | None) -> Any:
    """Return a progress bar: always, never, or (`None`) only on long calls that somebody watches in a terminal."""
    return transformers_logging.tqdm(
        total=total,
        desc="Sampling",
        unit=" responses",
        leave=False,
        delay=0.0 if progress else _SECONDS_BEFORE_A_BAR,
        disable=None if progress is None else not progress,
    )


def _complete(responses: Responses) -> list[torch.Tensor]:
    return [response for response in responses if response is not None]


def forwards_are_synchronized(model: Any) -> bool:
    """Return whether weights are gathered in every forward pass, so that all processes must make equally many."""
    # transformers knows only models that it has sharded itself, FSDP2 any model that was sharded.
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model) or isinstance(model, FSDPModule)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return bool(sharded and distributed and torch.distributed.get_world_size() > 1)
