"""
How each logits processor and each stopping criterion is called: one place decides it for both.

Plain `generate` shows them all rows, in one order, from the first step to the last. Candidates are drawn faster where
rows may come, go and be split into batches, which is right only for what looks at each row by itself. So:

| what it is | how it is called |
|---|---|
| transformers' own that look at one row, and any class with `rowwise = True` | on whatever rows there are |
| holds one entry per prompt, or (a processor) nothing at all | once per candidate, with one row per prompt |
| anything else | as it is, once per step, with all rows, as `generate(num_return_sequences=N)` calls it |

What holds something is copied for the second candidate and on, models and tokenizers in it apart; what cannot be
copied is refused where copies are needed. A criterion that answers with one bool for all rows is asked once per
candidate instead, so that the bool ends nothing but that candidate; the stop strings of lm-evaluation-harness are
asked about each row.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from hf_itp.errors import ArgumentError

Pair = tuple[int, int]
"""A prompt (its row) and the index of one of its candidates."""

# Exact types: a subclass of a user's may do anything.
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
    """How something that looks at rows is called."""

    BY_ROW = "on whatever rows there are"
    BY_CANDIDATE = "once per candidate, with one row per prompt"
    ALL_ROWS = "as it is, with all rows"


def how_called(thing: Any, num_prompts: int, num_rows: int) -> Calls:
    """
    Say how a processor or criterion is called where `num_rows` candidates are drawn for `num_prompts` prompts.

    Raises:
        `ArgumentError`: If it needs a copy per candidate and cannot be copied.
    """
    if type(thing) in _ROWWISE or getattr(type(thing), "rowwise", False) is True:
        return Calls.BY_ROW
    if num_rows == num_prompts or _holds_one_per(thing, num_rows):
        return Calls.ALL_ROWS
    if not isinstance(thing, StoppingCriteria) and hasattr(thing, "__dict__") and not list(_held(thing)):
        return Calls.BY_CANDIDATE
    if _holds_one_per(thing, num_prompts):
        if _copied(thing) is not None:
            return Calls.BY_CANDIDATE
        if num_prompts > 1:
            raise ArgumentError(
                f"{_name(thing)} holds one entry per prompt, so each of the {num_rows // num_prompts} candidates "
                f"needs a copy of it, but it cannot be copied. {_REMEDY}, or pass one prompt at a time."
            )
    return Calls.ALL_ROWS


def rows_are_independent(logits_processor: Sequence[Any], stopping_criteria: Sequence[Any]) -> bool:
    """Say whether all of them look at each row by itself, so that rows may come, go and be split."""
    return all(
        type(thing) in _ROWWISE or getattr(type(thing), "rowwise", False) is True
        for thing in (*logits_processor, *stopping_criteria)
    )


def of_rows(processor: LogitsProcessor, prompt_index: torch.Tensor) -> LogitsProcessor:
    """Give the row-wise processor for rows that continue the prompts at `prompt_index`; it is not changed."""
    # The two that know rows by their place among the prompts: how much left padding each has, what each may become.
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
        num_rows (`int`): Candidates that are drawn for them, all prompts together.

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
        # A limit on the time of the call is no question about rows.
        self.time_limits = [one for one in stopping_criteria if type(one) is criteria.MaxTimeCriteria]
        asked = [one for one in stopping_criteria if type(one) is not criteria.MaxTimeCriteria]
        self._processors = [(one, how_called(one, num_prompts, num_rows)) for one in logits_processor]
        self._criteria = [(one, how_called(one, num_prompts, num_rows)) for one in asked]
        # As they are before the first call: what a copy is made of.
        self._fresh = {
            id(one): _copied(one)
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
        """Whether all rows have to be drawn together: seen at once, or ended by the clock at the same moment."""
        return bool(self.time_limits or self._seeing_all())

    def check(
        self,
        batch_size: int | None = None,
        draws_again: bool = False,
        reviewed: bool = False,
        processes: int = 1,
    ) -> None:
        """
        Args:
            batch_size (`int`, *optional*): Most rows at once, as the caller set it.
            draws_again (`bool`, *optional*, defaults to `False`): Whether the strategy may draw further candidates.
            reviewed (`bool`, *optional*, defaults to `False`): Whether candidates are ended early.
            processes (`int`, *optional*, defaults to 1): How many share the candidates.

        Raises:
            `ArgumentError`: If what was set cannot be honoured together with a processor or criterion; names it.
        """
        if reviewed and not self.rows_are_independent:
            names = ", ".join(_name(one) for one, calls in self._looking() if calls is not Calls.BY_ROW)
            raise ArgumentError(
                "`early_rejection` needs processors and criteria that look at one row alone, but the call has "
                f"{names}. {_REMEDY}, or remove it or `early_rejection`."
            )
        together = [_name(one) for one in self._seeing_all()] + ["max_time"] * bool(self.time_limits)
        if together and draws_again:
            raise ArgumentError(
                f"{together[0]} sees all candidates of a call together, but this strategy draws more where it needs "
                "them. Remove it, or pass a strategy that draws one pool, such as pool='shared'."
            )
        if processes > 1:
            for one in self._seeing_all():
                if _holds_one_per(one, self._num_rows):
                    raise ArgumentError(
                        f"{_name(one)} holds one entry per candidate ({self._num_rows}), but with `shard` each of "
                        f"{processes} processes draws a part of them. {_REMEDY}, or leave `shard` out."
                    )
        if batch_size is None or (self.rows_are_independent and not together):
            return
        least, what = (self._num_rows, "candidate") if together else (self._num_prompts, "prompt")
        if batch_size < least:
            name = together[0] if together else next(_name(o) for o, c in self._looking() if c is not Calls.BY_ROW)
            remedy = "." if name == "max_time" else f". {_REMEDY}."
            raise ArgumentError(
                f"`batch_size` must be at least {least} with {name}, one row per {what}, got {batch_size}. Leave "
                f"`batch_size` out{remedy}"
            )

    def arranged(self, pairs: Sequence[Pair]) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
        """
        Give the processors and criteria for a batch whose rows are these and stay where they are.

        Args:
            pairs (`list[tuple[int, int]]`): Prompt and candidate index of each row. With anything called by candidate
                every prompt is there for each index.
        """
        prompt_index = torch.tensor([prompt for prompt, _ in pairs])
        groups = _groups(pairs)
        arranged = []
        for one, calls in self._processors:
            if calls is Calls.BY_ROW:
                one = of_rows(one, prompt_index)
            elif calls is Calls.BY_CANDIDATE:
                one = _ProcessorByCandidate([(rows, self._own(one)) for rows in groups])
            arranged.append(one)
        ending: list[StoppingCriteria] = []
        for one, calls in self._criteria:
            if _is_harness_tracker(one) and len(groups) > 1:
                one = _CriterionByCandidate([([row], _for_one_row(self._fresh[id(one)])) for row in range(len(pairs))])
            elif calls is Calls.BY_CANDIDATE:
                one = _CriterionByCandidate([(rows, self._own(one)) for rows in groups])
            elif calls is Calls.ALL_ROWS:
                knows_all = len(groups) == 1 or _holds_one_per(one, len(pairs))
                one = _CriterionOfAllRows(one, groups, None if knows_all else self._fresh[id(one)], knows_all)
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
        """The thing itself for the first candidate, so that what it records is there; copies for the others."""
        if id(thing) not in self._used:
            self._used.add(id(thing))
            return thing
        return _copied(self._fresh[id(thing)])


class _ProcessorByCandidate(LogitsProcessor):
    """Calls one processor per candidate, each with the rows `rows` of all prompts."""

    def __init__(self, groups: list[tuple[list[int], Any]]):
        # In a list of transformers', which checks what further arguments a processor wants.
        self._groups = [(torch.tensor(rows), LogitsProcessorList([own])) for rows, own in groups]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        processed = torch.empty_like(scores)
        for rows, own in self._groups:
            rows = rows.to(scores.device)
            processed[rows] = own(input_ids[rows], scores[rows])  # type: ignore[arg-type]
        return processed


class _CriterionByCandidate(StoppingCriteria):
    """Asks one criterion per candidate about the rows of all prompts."""

    def __init__(self, groups: list[tuple[list[int], Any]]):
        self._groups = [(torch.tensor(rows), own) for rows, own in groups]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for rows, own in self._groups:
            rows = rows.to(input_ids.device)
            ended[rows] = _answer(own, input_ids[rows], scores, kwargs)
        return ended


class _CriterionOfAllRows(StoppingCriteria):
    """
    Asks a criterion about all rows; one that answers with a single bool is asked once per candidate from then on.

    Args:
        criterion: The caller's own.
        groups (`list[list[int]]`): The rows of each candidate index.
        fresh: A copy made before the first call, to ask about one candidate; `None` if it cannot be copied.
        knows_all (`bool`): Whether a single bool is meant for all rows.
    """

    def __init__(self, criterion: Any, groups: list[list[int]], fresh: Any, knows_all: bool):
        self._criterion, self._groups, self._fresh, self._knows_all = criterion, groups, fresh, knows_all
        self._by_candidate: _CriterionByCandidate | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._by_candidate is not None:
            return self._by_candidate(input_ids, scores, **kwargs)
        answer = _answer(self._criterion, input_ids, scores, kwargs)
        if answer.dim() > 0 or self._knows_all:
            return answer.expand(len(input_ids))
        if self._fresh is not None:
            self._by_candidate = _CriterionByCandidate([(rows, _copied(self._fresh)) for rows in self._groups])
            return self._by_candidate(input_ids, scores, **kwargs)
        if bool(answer):
            raise ArgumentError(
                f"{_name(self._criterion)} answered True for {len(input_ids)} rows at once and cannot be copied to be "
                "asked about each, so it would end candidates it knows nothing of. Return one bool per row: a tensor "
                "of shape (len(input_ids),)."
            )
        return answer.expand(len(input_ids))


def _is_harness_tracker(thing: Any) -> bool:
    # lm-evaluation-harness makes one per stop string and batch, which is done once every prompt's row has had the
    # string; what a row writes after its own is cut off when the call is over. A reward would read it. Goes when its
    # criteria answer with one bool per row.
    return type(thing).__module__.startswith("lm_eval.") and isinstance(getattr(thing, "done_tracker", None), list)


def _for_one_row(tracker: Any) -> Any:
    own = _copied(tracker)
    own.done_tracker = [False]
    return own


def _answer(criterion: Any, input_ids: torch.Tensor, scores: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """What a criterion says: `(R,)`, or 0-dimensional where it says one thing for all rows."""
    given = criterion(input_ids, scores, **kwargs)
    try:
        answer = torch.as_tensor(given, device=input_ids.device).bool()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"{_name(criterion)} must answer with bools, got {given!r:.80}. Return a tensor of shape "
            "(len(input_ids),)."
        ) from None
    if answer.numel() == 1:
        return answer.reshape(())
    if answer.shape != (len(input_ids),):
        raise ArgumentError(
            f"{_name(criterion)} must answer with one bool per row ({len(input_ids)}), got shape "
            f"{tuple(answer.shape)}. Return a tensor of shape (len(input_ids),)."
        )
    return answer


def _groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """The rows of each candidate index, each in the order of the prompts."""
    by_index: dict[int, list[int]] = {}
    for row, (_, index) in enumerate(pairs):
        by_index.setdefault(index, []).append(row)
    return [sorted(rows, key=lambda row: pairs[row][0]) for rows in by_index.values()]


def _held(thing: Any) -> Iterator[Any]:
    """What an object, or the function it is, carries along from call to call."""
    if isinstance(thing, functools.partial):
        yield from (thing.args, thing.keywords.values())
        yield from _held(thing.func)
    elif inspect.ismethod(thing):
        yield from _held(thing.__self__)
    elif inspect.isfunction(thing):
        for cell in thing.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for name in (name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())):
            if hasattr(thing, name):
                yield getattr(thing, name)


def _holds_one_per(thing: Any, count: int) -> bool:
    """Whether something it holds has that many entries, so that it was made for as many rows."""
    for value in _held(thing):
        parts = [value]
        if isinstance(value, dict):
            if list(value) == list(range(count)):
                return True
            parts = list(value.values())
        for part in parts:
            if isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0 and part.shape[0] == count:
                return True
            if isinstance(part, (list, tuple)) and len(part) == count:
                return True
    return False


def _copied(thing: Any) -> Any:
    """A copy that shares the models and tokenizers in it; `None` where something in it cannot be copied."""
    memo = {id(part): part for part in _heavy(thing, depth=3)}
    try:
        return copy.deepcopy(thing, memo)
    except Exception:  # whatever a lock, a file or a compiled grammar raises
        return None


def _heavy(thing: Any, depth: int) -> Iterator[Any]:
    if isinstance(thing, (nn.Module, PreTrainedTokenizerBase)):
        yield thing
    elif depth > 0:
        held = list(thing.values()) if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else None
        for part in _held(thing) if held is None else held:
            yield from _heavy(part, depth - 1)


def _name(thing: Any) -> str:
    return f"`{getattr(thing, '__qualname__', type(thing).__name__)}`"
