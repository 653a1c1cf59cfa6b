"""
The interface of every reward: prompts and responses in, one float32 reward per pair out.

Knows nothing of policies, sampling or strategies.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError

Prompt = str | list[dict]
"""A prompt as a reward sees it: plain text, or a chat (a list of messages, each with a `role` and whatever else)."""

ResponseIds = Sequence[torch.Tensor] | None
"""The token ids of each response under the policy's tokenizer, where they are known."""

NO_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric"})
"""What TRL's trainers pass beside the columns of their data, one value for all responses."""


class RewardFunction(ABC):
    """
    Score responses to prompts. A subclass defines [`score`]; a call also checks the rewards it returns.

    TRL's trainers accept one as a reward function: called with `completions=` it returns a list of floats.

    Args of a call:
        prompts (`list[str]` or `list[list[dict]]`): One prompt, text or chat, per response.
        responses (`list[str]`): The responses as text, without special tokens.
        response_ids (`list[torch.LongTensor]`, *optional*): Their tokens under the policy's tokenizer, for rewards
            that look at tokens.
        columns (`list`, *optional*): Further columns of the data by name, each with one entry per response. They are
            passed to a `score` that takes them, by name or as `**columns`.
        completions, completion_ids (*optional*): Instead of responses, as TRL passes them: texts if the prompts are
            texts, else `[{"role": "assistant", "content": ...}]`; lists of ids.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32, on the CPU, finite; as `list[float]` for `completions`. It depends
        neither on torch's default dtype nor, for models, on the caller's autocast: they compute in their own dtype.
    """

    name: str

    @property
    def __name__(self) -> str:
        """The name TRL logs: of paths and Hub ids only the last part."""
        return re.sub(r"[^(),\s]*/", "", self.name)

    @property
    def devices(self) -> frozenset[torch.device]:
        """Devices it computes on; empty if unknown."""
        return frozenset()

    @overload
    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: ResponseIds = None,
        **columns: Any,
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]: ...

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str] | None = None,
        response_ids: ResponseIds = None,
        *,
        completions: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> torch.Tensor | list[float]:
        if completions is None and completion_ids is None:
            return self.rewards_of(prompts, responses, response_ids, columns)
        # With TRL's completions, `responses` is a column of the data set.
        of_data = {"responses": responses, "response_ids": response_ids}
        columns |= {name: column for name, column in of_data.items() if column is not None}
        _check_pairs(prompts, completions, "completions")
        pairs = [_completed(*pair) for pair in zip(prompts, completions or [], strict=True)]
        ids = None if completion_ids is None else [torch.as_tensor(row, dtype=torch.long) for row in completion_ids]
        return self.rewards_of([prompt for prompt, _ in pairs], [text for _, text in pairs], ids, columns).tolist()

    def rewards_of(
        self, prompts: Any, responses: Any, response_ids: Any = None, columns: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """Call the reward with the columns in one argument, so that any names are allowed."""
        columns = columns or {}
        _check_pairs(prompts, responses, "responses")
        check_columns(columns, len(responses), "response")
        for position, response in enumerate(responses):
            if not isinstance(response, str):
                raise ArgumentTypeError(
                    f"`responses` must be texts, got {response!r:.80} at {position}. Pass chats as completions=..., "
                    "as TRL does."
                )
        if len(responses) == 0:
            return torch.empty(0, dtype=torch.float32)
        taken = {name: column for name, column in columns.items() if _score_takes(self.score, name)}
        rewards = self.score(list(prompts), list(responses), response_ids, **taken)
        return _checked(rewards, len(responses), self.name)

    @abstractmethod
    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /
    ) -> torch.Tensor | Sequence[float]:
        """Return the rewards of `n >= 1` pairs, in order. Add `**columns` to receive the columns of the data."""

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        """
        Raise now, before anything is drawn, what a call on these prompts would raise for any response.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): Each once is enough.
            columns (`list`, *optional*): The columns that the calls will pass, one entry per prompt.
        """
        return None

    def takes(self, column: str) -> bool:
        """Return whether the rewards may depend on a column of that name."""
        return _score_takes(self.score, column)


def check_columns(columns: Mapping[str, Any], count: int, entry: str) -> None:
    """
    Check that each column is a list with `count` entries, one per `entry` ("prompt", "response").

    Raises:
        `ArgumentTypeError`, `ArgumentError`: If one is not; names it.
    """
    for name, column in columns.items():
        if name in NO_COLUMNS:
            continue
        if isinstance(column, (str, bytes, Mapping)) or not hasattr(column, "__len__"):
            raise ArgumentTypeError(
                f"`{name}` must be a list with one entry per {entry}, got {column!r:.80}. Repeat a value that is the "
                f"same for all: {name}=[value] * {count}."
            )
        if len(column) != count:
            raise ArgumentError(
                f"`{name}` must have one entry per {entry} ({count}), got {len(column)}. Repeat a value that is the "
                "same for all."
            )


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return a function's parameters, `None` for compiled ones without a signature."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return None


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function takes an argument of that name by keyword."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        p.kind is inspect.Parameter.VAR_KEYWORD or (p.name == name and p.kind in named)
        for p in parameters_of(function) or []
    )


def _score_takes(score: Callable[..., Any], column: str) -> bool:
    # A column may share the name of one of the first three, which are passed by position.
    of_pairs = [p for p in (parameters_of(score) or [])[:3] if p.kind is not inspect.Parameter.POSITIONAL_ONLY]
    return accepts(score, column) and column not in [p.name for p in of_pairs]


def _check_pairs(prompts: Any, responses: Any, name: str) -> None:
    for argument, values in (("prompts", prompts), (name, responses)):
        if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
            raise ArgumentTypeError(
                f"`{argument}` must be a list with one entry per response, got {values!r:.80}. For one pair pass "
                "reward([prompt], [response])."
            )
    if len(prompts) != len(responses):
        raise RewardError(
            f"`prompts` must have one entry per entry of `{name}`, got {len(prompts)} prompts and {len(responses)} "
            f"{name}. Repeat each prompt once per response."
        )


def _completed(prompt: Prompt, completion: Any) -> tuple[Prompt, str]:
    """
    Turn TRL's prompt and completion into prompt and response. Anything in a completion beside one assistant's text,
    such as tool calls and their results, goes to the prompt, whose last message the response then continues.
    """
    if isinstance(completion, str):
        return prompt, completion
    *before, last = completion
    content = last.get("content")
    further = [key for key in last if key not in ("role", "content") and last[key] is not None]
    if last.get("role") != "assistant" or not isinstance(content, (str, type(None))):
        raise RewardError(
            f"`completions` must be texts, or chats that end in text of the assistant, got {completion!r:.80}. Score "
            "it with a function f(prompts, completions, **kwargs)."
        )
    if isinstance(prompt, str):
        if before or further:
            raise RewardError(
                f"`completions` must be texts where `prompts` are, got {completion!r:.80}. Pass chats as prompts."
            )
        return prompt, content or ""
    begun = [{**last, "content": ""}] if further else []
    return [*prompt, *before, *begun], content or ""


def _checked(rewards: object, count: int, name: str) -> torch.Tensor:
    """Return the rewards as finite float32 on the CPU, one per response."""
    if isinstance(rewards, Sequence):
        # In Python's own precision, not in torch's default dtype.
        rewards = torch.tensor(_numbers(rewards, name), dtype=torch.float64)
    try:
        rewards = torch.as_tensor(rewards).detach()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"Reward function `{name}` must return floats, got a {type(rewards).__name__}. Return one "
            "float per response, in order."
        ) from None
    if rewards.dim() == 1 and len(rewards) != count:
        raise RewardError(
            f"Reward function `{name}` must return one reward per response ({count}), got {len(rewards)}. Return one "
            "float per response, in order."
        )
    if rewards.shape != (count,) or rewards.is_complex():
        raise RewardError(
            f"Reward function `{name}` must return real rewards of shape ({count},), got shape "
            f"{tuple(rewards.shape)} and dtype {rewards.dtype}. Return one float per response, in order."
        )
    rewards = rewards.to(device="cpu", dtype=torch.float32)
    if not torch.isfinite(rewards).all():
        position = int((~torch.isfinite(rewards)).nonzero()[0])
        raise RewardError(
            f"Reward function `{name}` must return finite rewards, got {rewards[position].item()} for response "
            f"{position} of {count}, so no candidate can be ranked. Return a finite float for every response."
        )
    return rewards


def _numbers(rewards: Sequence[object], name: str) -> list[float]:
    numbers: list[float] = []
    for position, reward in enumerate(rewards):
        try:
            numbers.append(float(reward))  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(
                f"Reward function `{name}` must return floats, got {reward!r} for response {position} of "
                f"{len(rewards)}, so no candidate can be ranked. Return a finite float for every response."
            ) from None
    return numbers
