"""
Register an attention function with transformers, under a name that a model's configuration can select.

Knows nothing of the keys it attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import AttentionInterface

EXACT_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Attention implementations of transformers that compute the same as ours."""

_T = TypeVar("_T")


class AttentionCall(NamedTuple):
    """Arguments of one layer's attention, in the shapes of transformers."""

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    dropout: float
    window: int | None
    softcap: float | None
    sink: torch.Tensor | None


def attention_interface(name: str) -> Callable[[Callable[[AttentionCall], torch.Tensor]], Callable[..., Any]]:
    """
    Return a decorator that registers an attention function with transformers as `name`.

    The function takes an [`AttentionCall`] and returns the outputs `(B, Q, H, E)`.
    """

    def decorate(attend: Callable[[AttentionCall], torch.Tensor]) -> Callable[..., Any]:
        def interface(
            module: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            scaling: float | None = None,
            dropout: float = 0.0,
            sliding_window: int | None = None,
            softcap: float | None = None,
            s_aux: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> tuple[torch.Tensor, None]:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            call = AttentionCall(
                module, query, key, value, attention_mask, scaling, dropout, sliding_window, softcap, s_aux
            )
            return attend(call), None

        # Without a mask function under the name transformers prepares no mask, and there is no padding to hide.
        AttentionInterface.register(name, interface)
        return interface

    return decorate


@contextmanager
def active(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    """Set a context variable inside the `with` block, in this thread only."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
