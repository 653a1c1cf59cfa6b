"""
The decoding loop: take rows from the prompt to their last token, as many at once as there is room for.

Knows nothing of where keys and values live (the decoder does) or how a token is drawn (the token sampler does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.generation.stopping_criteria import StoppingCriteriaList

from hf_itp.errors import DistributionError
from hf_itp.sampling.cohort import Cohort, Responses
from hf_itp.sampling.decoders import Decoder
from hf_itp.sampling.token_sampler import TokenSampler

# Finished rows leave once they are an eighth of the batch. Dropping rows copies the cache of those that stay, which
# costs about as much as the copy that every step makes to append to it. Waiting for an eighth keeps the sum of these
# copies below one pass over the cache per halving of the batch, and keeps the cohorts few.
_DROP_SHARE = 8


@dataclass(frozen=True)
class Review:
    """
    Regular look at the responses while they grow, which may end some of them.

    Args:
        interval (`int`): Tokens between two looks.
        reject (`Callable[[list[torch.Tensor], list[int]], list[int]]`): Takes every response as far as it is written
            and the indices of the unfinished ones; returns the indices of those that end now.
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
    responses: Responses,
    *,
    places: torch.Tensor | None = None,
    on_finished: Callable[[int], None] = lambda count: None,
    most_rows: int | None = None,
    any_unfinished: Callable[[bool], bool] | None = None,
    review: Review | None = None,
    rows_stay: bool = False,
    pad_token: int | None = None,
    time_is_over: Callable[[], bool] | None = None,
) -> int:
    """
    Decode one response per row; return how many ended because the time was over.

    Args:
        decoder ([`Decoder`]): Runs the model.
        token_sampler ([`TokenSampler`]): Draws the tokens.
        stopping_criteria (`StoppingCriteriaList`): Decide when a row ends. Called with rows of equal length.
        input_ids (`torch.LongTensor` of shape `(B, L)`): All prompts.
        prompt_index (`torch.LongTensor` of shape `(R,)`): Which of them each row continues.
        keys (`torch.LongTensor` of shape `(R,)`): Each row's stream of random numbers.
        responses (`list`): Receives the tokens of each response that has ended, on the CPU, its end token included.
            What has ended is not lost if a later step fails.
        places (`torch.LongTensor` of shape `(R,)`, *optional*): Index in `responses` that each row writes to. Defaults
            to the first R.
        on_finished (`Callable`, *optional*): Told how many responses have just ended.
        most_rows (`int`, *optional*): Maximum rows in the batch at once. The others take the places of those that
            finish; that needs a decoder that rows can join, and excludes `any_unfinished` and `review`. Defaults to
            all.
        any_unfinished (`Callable`, *optional*): For processes that must make equally many forward passes: takes
            whether this one is done, returns whether any is not. Rows then stay in the batch to the end.
        review ([`Review`], *optional*): May end unfinished rows.
        rows_stay (`bool`, *optional*, defaults to `False`): Whether rows stay in their place to the end, for
            processors and criteria that know them by it.
        pad_token (`int`, *optional*): Appended to finished rows that stay ([`Cohort`]).
        time_is_over (`Callable`, *optional*): Asked after each step whether all rows end here.

    Raises:
        `DistributionError`: If no next token can be drawn from a row's logits; names prompt and token.
    """
    rows_can_leave = decoder.rows_can_leave and not rows_stay and any_unfinished is None
    most_rows = len(keys) if most_rows is None else most_rows
    places = torch.arange(len(keys), device=keys.device) if places is None else places
    begun = 0

    def begin(count: int) -> Cohort:
        nonlocal begun
        chosen = slice(begun, begun + count)
        cohort = Cohort(token_sampler, input_ids, prompt_index[chosen], keys[chosen], places[chosen], pad_token)
        begun += len(cohort)
        return cohort

    # Begin with as many rows as there is room for. Their prompts give the first logits.
    cohorts = [begin(most_rows)]
    logits = decoder.start(cohorts[0].prompt_index)
    all_done, cut = False, 0
    while True:
        if not all_done:
            # Draw and append one token per row; store the responses that end with it.
            tokens = _next_tokens(token_sampler, cohorts, logits.to(input_ids.device))
            for cohort, drawn in zip(cohorts, tokens, strict=True):
                on_finished(cohort.append(drawn, stopping_criteria, responses))
            # End rows that did not end by themselves: the time is over, or a review rejects them.
            if time_is_over is not None and time_is_over():
                for cohort in cohorts:
                    ended = cohort.end(torch.ones_like(cohort.unfinished), responses, "time")
                    on_finished(ended)
                    cut += ended
            if review is not None and cohorts[0].step % review.interval == 0 and bool(cohorts[0].unfinished.any()):
                _end_rejected(review, cohorts[0], responses, on_finished)
            unfinished = sum(int(cohort.unfinished.sum()) for cohort in cohorts)
            all_done = unfinished == 0 and begun == len(keys)
        if not (any_unfinished(all_done) if any_unfinished is not None else not all_done):
            return cut
        # Let finished rows leave, and waiting ones take their places.
        size = sum(map(len, cohorts))
        joining = None
        if rows_can_leave and (size - unfinished) * _DROP_SHARE >= size:
            cohorts = _staying(decoder, cohorts)
            if begun < len(keys):
                joining = begin(most_rows - unfinished)
        # Run the model: the newest token of each row, the whole prompt of those that join.
        parts = []
        if cohorts:
            newest = [cohort.input_ids[:, -1:] for cohort in cohorts]
            parts.append(decoder.advance(torch.cat(newest) if len(newest) > 1 else cohorts[0].input_ids))
        if joining is not None:
            cohorts.append(joining)
            parts.append(decoder.join(joining.prompt_index))
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]


def _next_tokens(token_sampler: TokenSampler, cohorts: list[Cohort], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    try:
        return _drawn(token_sampler, cohorts, logits)
    except DistributionError as error:
        assert error.row is not None
        rows = [(cohort, row) for cohort in cohorts for row in range(len(cohort))]
        cohort, row = rows[error.row]
        raise DistributionError(
            f"The policy's logits {error} at token {cohort.step} of a response to prompt "
            f"{int(cohort.prompt_index[row])}, so no token can be drawn. Check its weights and dtype (float16 "
            "overflows: try dtype=torch.bfloat16 or float32), and processors that mask every token.",
            error.row,
        ) from None


def _drawn(token_sampler: TokenSampler, cohorts: list[Cohort], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if len(cohorts) == 1:
        [cohort] = cohorts
        return (token_sampler.draw(cohort.process(logits), cohort.keys, cohort.step, cohort.unfinished),)
    sizes = [len(cohort) for cohort in cohorts]
    if token_sampler.warp is not None:
        logits = cohorts[0].process(logits)  # no row's own tokens matter to it
    else:
        parts = zip(cohorts, logits.split(sizes), strict=True)
        logits = torch.cat([cohort.process(part) for cohort, part in parts])
    keys = torch.cat([cohort.keys for cohort in cohorts])
    steps = torch.tensor([cohort.step for cohort in cohorts], device=keys.device)
    steps = steps.repeat_interleave(torch.tensor(sizes, device=keys.device))
    unfinished = torch.cat([cohort.unfinished for cohort in cohorts])
    return token_sampler.draw(logits, keys, steps, unfinished).split(sizes)


def _staying(decoder: Decoder, cohorts: list[Cohort]) -> list[Cohort]:
    """Remove the finished rows from cohorts and decoder; return the cohorts with any rows left."""
    rows, first = [], 0
    for cohort in cohorts:
        size = len(cohort)
        rows.append(first + cohort.leave())
        first += size
    decoder.keep(torch.cat(rows))
    return [cohort for cohort in cohorts if len(cohort)]


def _end_rejected(review: Review, cohort: Cohort, responses: Responses, on_finished: Callable[[int], None]) -> None:
    """Show the review what is written so far, and end the rows it rejects."""
    growing = cohort.unfinished.nonzero().squeeze(-1)
    places = cohort.places[growing].tolist()
    shown = [torch.empty(0, dtype=torch.long) if response is None else response for response in responses]
    for row, place in zip(growing.tolist(), places, strict=True):
        shown[place] = cohort.written[row].cpu()
    rejected = review.reject(shown, places)
    for place in rejected:
        responses.put(place, shown[place], "rejected")
    cohort.unfinished &= ~torch.isin(cohort.places, torch.tensor(rejected, dtype=torch.long, device=growing.device))
    on_finished(len(rejected))
