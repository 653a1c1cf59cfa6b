"""
Options of reward models, each stated once: constructors and `from_pretrained` take them as keywords.

Knows nothing of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeVar

from hf_itp.checks import check_choice, check_count
from hf_itp.errors import ArgumentError
from hf_itp.functional.steps import STEP_AGGREGATIONS

BatchSize = int | Literal["auto"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """
    Options of every reward model; the docstrings of the reward models describe them.

    Raises:
        `ArgumentError`: If an option breaks its rule, whatever the model.
    """

    batch_size: BatchSize = "auto"
    max_length: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.batch_size, str) and self.batch_size == "auto"):
            object.__setattr__(self, "batch_size", check_count("batch_size", self.batch_size, 1, 'Or pass "auto".'))

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Self:
        """
        Return the options that keywords state.

        Raises:
            `ArgumentError`: If a keyword is not an option; names it.
        """
        own, others = cls.split(keywords)
        if others:
            raise ArgumentError(
                f"`{next(iter(others))}` must be an option of a reward model in memory, but there is none of that "
                f"name. Choose from {', '.join(field.name for field in fields(cls))}."
            )
        return cls(**own)

    @classmethod
    def split(cls, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the keywords that are options, and the others."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in keywords.items() if name in names}
        return own, {name: value for name, value in keywords.items() if name not in names}


@dataclass(frozen=True, kw_only=True)
class RewardModelOptions(ScoringOptions):
    """Options of a [`RewardModel`]."""

    label: int | str | None = None
    append_eos: bool = False
    unbatched: bool = False


@dataclass(frozen=True, kw_only=True)
class ProcessRewardModelOptions(ScoringOptions):
    """Options of a [`ProcessRewardModel`]."""

    step_token: str | None = None
    separator: str = "\n\n"
    good_token: str | None = None
    bad_token: str | None = None
    aggregate: Literal["min", "product", "last", "mean"] = "min"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregate", self.aggregate, STEP_AGGREGATIONS)
        if not self.separator:
            raise ArgumentError(
                "`separator` must be the text between two steps, got an empty one. Pass e.g. separator='\\n\\n'."
            )
        if (self.good_token is None) != (self.bad_token is None) or (
            self.good_token is not None and self.good_token == self.bad_token
        ):
            raise ArgumentError(
                f"`good_token` and `bad_token` must be given together and differ, got {self.good_token!r} and "
                f"{self.bad_token!r}. Pass both for a language model, neither for a token classifier."
            )


def takes_keywords_of(*others: Callable[..., Any]) -> Callable[[_F], _F]:
    """Decorate a function that passes its `**keywords` on to others: its signature then shows theirs."""

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        shown = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        for other in others:
            for name, parameter in inspect.signature(other).parameters.items():
                if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
                    shown.setdefault(name, parameter)
        function.__signature__ = signature.replace(parameters=list(shown.values()))  # type: ignore[attr-defined]
        return function

    return decorate
