"""
Transforms of calibrated rewards, by name: with the right one, plain KL-regularized training is optimal for the
procedure that decodes the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from hf_itp.checks import check_choice
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional.transforms.base import Transform
from hf_itp.functional.transforms.elementary import Exponential, Function, Identity, Log
from hf_itp.functional.transforms.optimal import BestOfNOptimal, WorstOfNOptimal

__all__ = [
    "BestOfNOptimal",
    "Exponential",
    "Function",
    "Identity",
    "Log",
    "Transform",
    "WorstOfNOptimal",
    "get_transform",
    "list_transforms",
]

_CLASSES: dict[str, type[Transform]] = {
    cls.name: cls for cls in (Identity, Log, Exponential, BestOfNOptimal, WorstOfNOptimal)
}


def list_transforms() -> list[str]:
    """
    Return the names [`get_transform`] accepts.

    Examples:

    ```python
    >>> list_transforms()
    ['identity', 'log', 'exponential', 'best_of_n_optimal', 'worst_of_n_optimal']

    ```
    """
    return list(_CLASSES)


def get_transform(transform: str | Transform | Callable[[torch.Tensor], torch.Tensor], **fields: Any) -> Transform:
    """
    Build a transform from its name and fields; return a transform unchanged, and wrap a function.

    Args:
        transform (`str`, [`Transform`] or `Callable`): A name, a transform, or a nondecreasing function on `[0, 1]`.
        fields: Of a transform given by name: `t` of `exponential`, `n` and `beta` of the optimal ones.

    Raises:
        `ArgumentError`: If the name or a field is unknown, or a field is missing or out of range.

    Examples:

    ```python
    >>> get_transform("exponential", t=10)
    Exponential(t=10)

    ```
    """
    if isinstance(transform, str):
        check_choice("transform", transform, tuple(_CLASSES), "Choose one of them or pass a function.")
        cls = _CLASSES[transform]
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        wrong = sorted(set(fields) ^ set(known))
        if wrong:
            state = "unknown" if wrong[0] in fields else "missing"
            raise ArgumentError(
                f"`{wrong[0]}` is {state} for transform {transform!r}, which takes {', '.join(known) or 'no fields'}. "
                "Pass exactly these."
            )
        return cls(**fields)
    if fields:
        raise ArgumentError(
            f"`{next(iter(fields))}` must belong to a transform given by name, but `transform` is an object. Give it "
            "its fields when you build it."
        )
    if isinstance(transform, Transform):
        return transform
    if callable(transform):
        return Function(transform)
    raise ArgumentTypeError(
        f"`transform` must be a name, a Transform or a function, got a {type(transform).__name__}. Pass e.g. "
        "'identity'."
    )
