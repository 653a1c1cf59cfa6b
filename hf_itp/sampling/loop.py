"""
The decoding loop: rows of one batch, from the prompt to their last token.

Knows nothing of where keys and values live (the decoder's) nor of how a token is drawn (the token sampler's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.generation.stopping_criteria import StoppingCriteriaList

from hf_itp.sampling.decoders import Decoder
from hf_itp.sampling.token_sampler import TokenSampler

# Dropping rows copies the cache of those that stay, about the price of the copy every step makes to append to it.
# Waiting for an eighth of the batch keeps the sum of these copies below that of one pass over the cache per halving.
_DROP_SHARE = 8


@dataclass(frozen=True)
class Review:
    """
    A look at the responses while they grow.

    Args:
        interval (`int`): How many tokens lie between two looks.
        reject (`Callable[[list[torch.Tensor], list[int]], list[int]]`): Given every response as far as it is written,
            and which of them are unfinished, says which of the latter are to end where they are.
    """

    interval: int
    reject: Callable[[list[torch.Tensor], list[int]], list[int]]


def decode_rows(
    decoder: Decoder,
    token_sampler: TokenSampler,
    stopping_criteria: StoppingCriteriaList,
    input_ids: torch.Tensor,
    prompt_index: torch.Tensor,
    keys: torch.Tensor,
    any_unfinished: Callable[[bool], bool] | None = None,
    on_finished: Callable[[int], None] = lambda count: None,
    review: Review | None = None,
) -> list[torch.Tensor]:
    """
    One response per row.

    Args:
        decoder ([`Decoder`]): Runs the model.
        token_sampler ([`TokenSampler`]): Draws the tokens.
        stopping_criteria (`StoppingCriteriaList`): When a row ends. Called with the rows still in the batch.
        input_ids (`torch.LongTensor` of shape `(B, L)`): All prompts.
        prompt_index (`torch.LongTensor` of shape `(R,)`): Which of them each row continues.
        keys (`torch.LongTensor` of shape `(R,)`): Each row's stream of random numbers.
        any_unfinished (`Callable`, *optional*): Where processes have to make equally many forward passes: told whether
            this one is done, says whether any is not. Rows then stay in the batch to the end.
        on_finished (`Callable`, *optional*): Told how many rows have just ended.
        review ([`Review`], *optional*): May end unfinished rows.

    Returns:
        `list[torch.LongTensor]`: Tokens of each response on the CPU, its end token included.
    """
    num_rows, prompt_length = len(prompt_index), input_ids.shape[1]
    rows_can_leave = decoder.rows_can_leave and token_sampler.rows_are_independent and any_unfinished is None
    responses: list[torch.Tensor] = [torch.empty(0, dtype=torch.long)] * num_rows
    rows = torch.arange(num_rows, device=input_ids.device)  # which response each row of the batch writes
    unfinished = torch.ones(num_rows, dtype=torch.bool, device=input_ids.device)
    all_done = False

    input_ids = input_ids[prompt_index]
    row_sampler = token_sampler.for_rows(prompt_index)
    logits = decoder.start(prompt_index)
    while True:
        if not all_done:
            step = input_ids.shape[1] - prompt_length
            tokens = row_sampler.draw(input_ids, logits.to(input_ids.device), keys, step)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            ended = (unfinished & stopping_criteria(input_ids, None)).nonzero().squeeze(-1)
            for row in ended.tolist():
                responses[int(rows[row])] = input_ids[row, prompt_length:].cpu()
            unfinished[ended] = False
            on_finished(len(ended))
            if review is not None and (step + 1) % review.interval == 0 and bool(unfinished.any()):
                on_finished(_end_rejected(review, responses, rows, unfinished, input_ids[:, prompt_length:]))
            all_done = not bool(unfinished.any())
        if not (any_unfinished(all_done) if any_unfinished is not None else not all_done):
            return responses
        if rows_can_leave and int((~unfinished).sum()) * _DROP_SHARE >= len(rows):
            staying = unfinished.nonzero().squeeze(-1)
            decoder.keep(staying)
            input_ids, rows, keys, prompt_index, unfinished = (
                tensor[staying] for tensor in (input_ids, rows, keys, prompt_index, unfinished)
            )
            row_sampler = token_sampler.for_rows(prompt_index)
        logits = decoder.advance(input_ids)


def _end_rejected(
    review: Review,
    responses: list[torch.Tensor],
    rows: torch.Tensor,
    unfinished: torch.Tensor,
    written: torch.Tensor,
) -> int:
    """Shows the review what is written so far, ends the rows it rejects and says how many these are."""
    growing = unfinished.nonzero().squeeze(-1)
    for row in growing.tolist():
        responses[int(rows[row])] = written[row].cpu()
    rejected = torch.tensor(review.reject(responses, rows[growing].tolist()), dtype=torch.long, device=rows.device)
    unfinished &= ~torch.isin(rows, rejected)
    return len(rejected)
