"""
Call processors and criteria once per candidate, each time with the rows of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria

from hf_itp.errors import ArgumentError
from hf_itp.sampling.held_state import copied, name_of

Pair = tuple[int, int]
"""Row of a prompt, and index of one of its candidates."""


class ProcessorByCandidate(LogitsProcessor):
    """Processor that calls one processor per candidate, each with the rows of all prompts."""

    def __init__(self, groups: list[tuple[list[int], Any]]):
        # In transformers' own list, which checks what further arguments a processor takes.
        self._groups = [(torch.tensor(rows), LogitsProcessorList([own])) for rows, own in groups]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        processed = torch.empty_like(scores)
        for rows, own in self._groups:
            rows = rows.to(scores.device)
            processed[rows] = own(input_ids[rows], scores[rows])  # type: ignore[arg-type]
        return processed


class CriterionByCandidate(StoppingCriteria):
    """Criterion that asks one criterion per candidate about the rows of all prompts."""

    def __init__(self, groups: list[tuple[list[int], Any]]):
        self._groups = [(torch.tensor(rows), own) for rows, own in groups]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for rows, own in self._groups:
            rows = rows.to(input_ids.device)
            ended[rows] = _answer(own, input_ids[rows], scores, kwargs)
        return ended


class CriterionOfAllRows(StoppingCriteria):
    """
    Criterion that asks the caller's criterion about all rows.

    If that answers with a single bool, it is asked once per candidate from then on.

    Args:
        criterion: The caller's own.
        groups (`list[list[int]]`): The rows of each candidate index.
        fresh: A copy from before the first call, to ask about one candidate; `None` if it cannot be copied.
        knows_all (`bool`): Whether a single bool is meant for all rows.
    """

    def __init__(self, criterion: Any, groups: list[list[int]], fresh: Any, knows_all: bool):
        self._criterion, self._groups, self._fresh, self._knows_all = criterion, groups, fresh, knows_all
        self._by_candidate: CriterionByCandidate | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._by_candidate is not None:
            return self._by_candidate(input_ids, scores, **kwargs)
        answer = _answer(self._criterion, input_ids, scores, kwargs)
        if answer.dim() > 0 or self._knows_all:
            return answer.expand(len(input_ids))
        if self._fresh is not None:
            self._by_candidate = CriterionByCandidate([(rows, copied(self._fresh)) for rows in self._groups])
            return self._by_candidate(input_ids, scores, **kwargs)
        if bool(answer):
            raise ArgumentError(
                f"{name_of(self._criterion)} must answer with one bool per row, got True for {len(input_ids)} rows at "
                "once, and it cannot be copied to ask about each. Return a tensor of shape (len(input_ids),)."
            )
        return answer.expand(len(input_ids))


def _answer(criterion: Any, input_ids: torch.Tensor, scores: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a criterion's answer: `(R,)`, or 0-dimensional if it gives one for all rows."""
    given = criterion(input_ids, scores, **kwargs)
    try:
        answer = torch.as_tensor(given, device=input_ids.device).bool()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"{name_of(criterion)} must answer with bools, got {given!r:.80}. Return a tensor of shape "
            "(len(input_ids),)."
        ) from None
    if answer.numel() == 1:
        return answer.reshape(())
    if answer.shape != (len(input_ids),):
        raise ArgumentError(
            f"{name_of(criterion)} must answer with one bool per row ({len(input_ids)}), got shape "
            f"{tuple(answer.shape)}. Return a tensor of shape (len(input_ids),)."
        )
    return answer


def rows_by_candidate(pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the rows of each candidate index, in the order of the prompts."""
    by_index: dict[int, list[int]] = {}
    for row, (_, index) in enumerate(pairs):
        by_index.setdefault(index, []).append(row)
    return [sorted(rows, key=lambda row: pairs[row][0]) for rows in by_index.values()]
