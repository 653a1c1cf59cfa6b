"""
Decide how each logits processor and each stopping criterion is called.

Plain `generate` shows them all rows, in one order, from the first step to the last. Candidates are drawn faster if
rows may come, go and be split into batches, which is right only for what looks at each row by itself. So:

| what it is | how it is called |
|---|---|
| transformers' own that look at one row, and any class with `rowwise = True` | on whatever rows there are |
| holds one entry per prompt, or (a processor) nothing at all | once per candidate, with one row per prompt |
| anything else | as it is, once per step, with all rows, as `generate(num_return_sequences=N)` calls it |

What holds something is copied for each candidate after the first, except models and tokenizers in it; what cannot be
copied is refused if copies are needed. A criterion that answers with one bool for all rows is asked once per candidate
instead, so that the bool ends only that candidate. The stop strings of lm-evaluation-harness are asked about each row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from hf_itp.errors import ArgumentError
from hf_itp.sampling.held_state import copied, held, holds_one_per, name_of
from hf_itp.sampling.row_groups import (
    CriterionByCandidate,
    CriterionOfAllRows,
    Pair,
    ProcessorByCandidate,
    rows_by_candidate,
)

# Exact types: a user's subclass may do anything.
_ROWWISE = {
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.MinPLogitsWarper,
    processors.TopHLogitsWarper,
    processors.TypicalLogitsWarper,
    processors.EpsilonLogitsWarper,
    processors.EtaLogitsWarper,
    processors.SequenceBiasLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.NoBadWordsLogitsProcessor,
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.PrefixConstrainedLogitsProcessor,
    processors.ForcedBOSTokenLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.InfNanRemoveLogitsProcessor,
    processors.ExponentialDecayLengthPenalty,
    processors.SuppressTokensLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.LogitNormalization,
    processors.RepetitionPenaltyLogitsProcessor,
    criteria.MaxLengthCriteria,
    criteria.MaxTimeCriteria,
    criteria.EosTokenCriteria,
    criteria.StopStringCriteria,
}
_REMEDY = "Set `rowwise = True` on its class if it looks at each row by itself"


class Calls(Enum):
    """Way in which a processor or criterion is called."""

    BY_ROW = "on whatever rows there are"
    BY_CANDIDATE = "once per candidate, with one row per prompt"
    ALL_ROWS = "as it is, with all rows"


def how_called(thing: Any, num_prompts: int, num_rows: int) -> Calls:
    """
    Return how a processor or criterion is called if `num_rows` candidates are drawn for `num_prompts` prompts.

    Raises:
        `ArgumentError`: If it needs a copy per candidate and cannot be copied.
    """
    if type(thing) in _ROWWISE or getattr(type(thing), "rowwise", False) is True:
        return Calls.BY_ROW
    if num_rows == num_prompts or holds_one_per(thing, num_rows):
        return Calls.ALL_ROWS
    if not isinstance(thing, StoppingCriteria) and hasattr(thing, "__dict__") and not list(held(thing)):
        return Calls.BY_CANDIDATE
    if holds_one_per(thing, num_prompts):
        if copied(thing) is not None:
            return Calls.BY_CANDIDATE
        if num_prompts > 1:
            raise ArgumentError(
                f"{name_of(thing)} holds one entry per prompt, so each of the {num_rows // num_prompts} candidates "
                f"needs a copy of it, but it cannot be copied. {_REMEDY}, or pass one prompt at a time."
            )
    return Calls.ALL_ROWS


def rows_are_independent(logits_processor: Sequence[Any], stopping_criteria: Sequence[Any]) -> bool:
    """Return whether all of them look at each row by itself, so that rows may come, go and be split."""
    return all(
        type(thing) in _ROWWISE or getattr(type(thing), "rowwise", False) is True
        for thing in (*logits_processor, *stopping_criteria)
    )


def of_rows(processor: LogitsProcessor, prompt_index: torch.Tensor) -> LogitsProcessor:
    """
    Return the row-wise processor for rows that continue the prompts at `prompt_index`.

    The given processor is not changed.
    """
    # Two of them know each prompt by its row: how much left padding it has, which tokens may follow it.
    if type(processor) is processors.RepetitionPenaltyLogitsProcessor:
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, torch.Tensor) and ignored.dim() > 0:
            processor = copy.copy(processor)
            processor.prompt_ignore_length = ignored[prompt_index.to(ignored.device)]
    elif type(processor) is processors.PrefixConstrainedLogitsProcessor:
        prompts, allowed = prompt_index.tolist(), processor._prefix_allowed_tokens_fn
        return processors.PrefixConstrainedLogitsProcessor(lambda row, ids: allowed(prompts[row], ids), 1)
    return processor


class RowCalls:
    """
    The processors and criteria of one draw.

    Args:
        logits_processor (`LogitsProcessorList`), stopping_criteria (`StoppingCriteriaList`): As `generate` prepares
            them.
        num_prompts (`int`): Rows of the batch.
        num_rows (`int`): Candidates drawn for all prompts together.

    Raises:
        `ArgumentError`: As [`how_called`] does.
    """

    def __init__(
        self,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        num_prompts: int,
        num_rows: int,
    ):
        self._num_prompts, self._num_rows = num_prompts, num_rows
        # A time limit of the call does not look at rows.
        self.time_limits = [one for one in stopping_criteria if type(one) is criteria.MaxTimeCriteria]
        asked = [one for one in stopping_criteria if type(one) is not criteria.MaxTimeCriteria]
        self._processors = [(one, how_called(one, num_prompts, num_rows)) for one in logits_processor]
        self._criteria = [(one, how_called(one, num_prompts, num_rows)) for one in asked]
        # Copies from before the first call, to make further copies of.
        self._fresh = {
            id(one): copied(one)
            for one, calls in (*self._processors, *self._criteria)
            if calls is Calls.BY_CANDIDATE or (calls is Calls.ALL_ROWS and isinstance(one, StoppingCriteria))
        }
        self._used: set[int] = set()

    @property
    def rows_are_independent(self) -> bool:
        """Whether rows may come, go and be split."""
        return all(calls is Calls.BY_ROW for _, calls in (*self._processors, *self._criteria))

    @property
    def needs_one_batch(self) -> bool:
        """Whether all rows must be drawn together: seen at once, or ended by the clock at the same moment."""
        return bool(self.time_limits or self._seeing_all())

    def check(
        self,
        batch_size: int | None = None,
        draws_again: bool = False,
        reviewed: bool = False,
        processes: int = 1,
    ) -> None:
        """
        Refuse settings of the call that a processor or criterion cannot work with.

        Args:
            batch_size (`int`, *optional*): Maximum rows at once, as the caller set it.
            draws_again (`bool`, *optional*, defaults to `False`): Whether the strategy may draw further candidates.
            reviewed (`bool`, *optional*, defaults to `False`): Whether candidates may be ended early.
            processes (`int`, *optional*, defaults to 1): Number of processes that share the candidates.

        Raises:
            `ArgumentError`: If a setting cannot be honoured together with a processor or criterion; names it.
        """
        if reviewed and not self.rows_are_independent:
            names = ", ".join(name_of(one) for one, calls in self._looking() if calls is not Calls.BY_ROW)
            raise ArgumentError(
                "`early_rejection` must come with processors and criteria that look at each row by itself, got "
                f"{names}. {_REMEDY}, or remove it or `early_rejection`."
            )
        together = [name_of(one) for one in self._seeing_all()] + ["max_time"] * bool(self.time_limits)
        if together and draws_again:
            raise ArgumentError(
                f"{together[0]} sees all candidates of a call together, but this strategy may draw more later. Remove "
                "it, or pass a strategy that draws one pool, such as pool='shared'."
            )
        if processes > 1:
            for one in self._seeing_all():
                if holds_one_per(one, self._num_rows):
                    raise ArgumentError(
                        f"{name_of(one)} holds one entry per candidate ({self._num_rows}), but with `shard` each of "
                        f"{processes} processes draws a part of them. {_REMEDY}, or leave `shard` out."
                    )
        if batch_size is None or (self.rows_are_independent and not together):
            return
        least, what = (self._num_rows, "candidate") if together else (self._num_prompts, "prompt")
        if batch_size < least:
            name = together[0] if together else next(name_of(o) for o, c in self._looking() if c is not Calls.BY_ROW)
            remedy = "." if name == "max_time" else f". {_REMEDY}."
            raise ArgumentError(
                f"`batch_size` must be at least {least} with {name}, one row per {what}, got {batch_size}. Leave "
                f"`batch_size` out{remedy}"
            )

    def arranged(self, pairs: Sequence[Pair]) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
        """
        Return the processors and criteria for a batch whose rows are `pairs` and stay where they are.

        Args:
            pairs (`list[tuple[int, int]]`): Prompt and candidate index of each row. If something is called once per
                candidate, each index must come with every prompt.
        """
        prompt_index = torch.tensor([prompt for prompt, _ in pairs])
        groups = rows_by_candidate(pairs)
        arranged = []
        for one, calls in self._processors:
            if calls is Calls.BY_ROW:
                one = of_rows(one, prompt_index)
            elif calls is Calls.BY_CANDIDATE:
                one = ProcessorByCandidate([(rows, self._own(one)) for rows in groups])
            arranged.append(one)
        ending: list[StoppingCriteria] = []
        for one, calls in self._criteria:
            if _is_harness_tracker(one) and len(groups) > 1:
                one = CriterionByCandidate([([row], _for_one_row(self._fresh[id(one)])) for row in range(len(pairs))])
            elif calls is Calls.BY_CANDIDATE:
                one = CriterionByCandidate([(rows, self._own(one)) for rows in groups])
            elif calls is Calls.ALL_ROWS:
                knows_all = len(groups) == 1 or holds_one_per(one, len(pairs))
                one = CriterionOfAllRows(one, groups, None if knows_all else self._fresh[id(one)], knows_all)
            ending.append(one)
        return LogitsProcessorList(arranged), StoppingCriteriaList(ending)

    @property
    def by_candidate(self) -> bool:
        """Whether something is called once per candidate, with a row for every prompt."""
        return any(calls is Calls.BY_CANDIDATE for _, calls in self._looking())

    def _looking(self) -> list[tuple[Any, Calls]]:
        return [*self._processors, *self._criteria]

    def _seeing_all(self) -> list[Any]:
        return [one for one, calls in self._looking() if calls is Calls.ALL_ROWS]

    def _own(self, thing: Any) -> Any:
        """Return the thing itself for the first candidate, so that the caller finds what it records; else a copy."""
        if id(thing) not in self._used:
            self._used.add(id(thing))
            return thing
        return copied(self._fresh[id(thing)])


def _is_harness_tracker(thing: Any) -> bool:
    # lm-evaluation-harness makes one criterion per stop string and batch, which answers True once every prompt's row
    # has had the string. It cuts off what a row wrote after its own string when the call is over, but a reward would
    # read that. Remove once its criteria answer with one bool per row.
    return type(thing).__module__.startswith("lm_eval.") and isinstance(getattr(thing, "done_tracker", None), list)


def _for_one_row(tracker: Any) -> Any:
    own = copied(tracker)
    own.done_tracker = [False]
    return own
