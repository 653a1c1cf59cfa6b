"""
Cache of keys and values in two parts: each prompt's once, and each row's own after it.

The attention that reads it is in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache

from hf_itp.models.attention_interface import active

# Tokens by which each row's own keys and values grow at once.
_BLOCK = 32

Rows = slice | torch.Tensor

active_cache: ContextVar[SharedPrefixCache] = ContextVar("hf_itp_shared_prefix_cache")
"""Cache that the attention of the current step reads."""


class CannotShare(Exception):
    """The model's attention does not work with keys in two parts."""


class CannotShareNow(CannotShare):
    """This call cannot share its prompts; another call on the same model may."""


class UnknownInterface(CannotShareNow):
    """A part of transformers differs from what this package knows; otherwise the model might share its prompts."""

    def __init__(self, interface: str):
        super().__init__(f"transformers' interface differs from the known one: {interface}")


@dataclass
class OwnKeys:
    """Keys and values of one layer, for rows that began together: only each row's own, without its prompt's."""

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    length: int = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Append a token `(R, H, 1, D)` to every row."""
        if self.keys is None or self.values is None or self.length == self.keys.shape[2]:
            self.keys, self.values = _grown(self.keys, key), _grown(self.values, value)
        self.keys[:, :, self.length] = key[:, :, 0]
        self.values[:, :, self.length] = value[:, :, 0]
        self.length += 1

    def last(self, count: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the last `count` tokens, by default of all, as views."""
        assert self.keys is not None and self.values is not None
        first = 0 if count is None else max(0, self.length - count)
        return self.keys[:, :, first : self.length], self.values[:, :, first : self.length]

    def keep(self, index: torch.Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[index], self.values[index]


def _grown(buffer: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    rows, heads, _, width = like.shape
    length = 0 if buffer is None else buffer.shape[2]
    grown = like.new_empty(rows, heads, length + _BLOCK, width)
    if buffer is not None:
        grown[:, :, :length] = buffer
    return grown


@dataclass
class SharedLayer:
    """
    Keys and values of one layer.

    Args:
        prefixes (`list[tuple[torch.Tensor, torch.Tensor]]`): Keys and values `(1, H, L, D)` of each prompt; in a
            sliding-window layer only the last ones.
        window (`int`, *optional*): Number of tokens that a sliding-window layer keeps in sight.
        own (`list[OwnKeys]`): Keys and values of the rows after their prompts, one entry per cohort.
    """

    prefixes: list[tuple[torch.Tensor, torch.Tensor]]
    window: int | None = None
    own: list[OwnKeys] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Rows that continue one prompt, and the cohort they are in (meaningless if they are in several)."""

    prompt: int
    rows: Rows
    cohort: int


@dataclass
class SharedPrefixCache(Cache):
    """
    Cache of a batch of rows, ordered by cohort. The rows of a cohort began together, so they have equally many tokens
    of their own.

    Args:
        layers (`list[SharedLayer]`): One per layer of the model.
        honours_softcap (`bool`): Whether the model's own attention applies a soft cap. The sdpa of transformers 5.17
            silently drops it (5.23's refuses), and the policy is what the model computes.
    """

    layers: list[Any]
    honours_softcap: bool = True
    prompt_index: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long), init=False)
    """The prompt each row continues."""
    cohorts: list[int] = field(default_factory=list, init=False)
    """How many rows each cohort has."""
    groups: list[Group] = field(default_factory=list, init=False)
    """The rows of each prompt."""
    groups_by_cohort: list[Group] = field(default_factory=list, init=False)
    """The rows of each prompt in each cohort."""
    _pending: SharedLayer | None = field(default=None, init=False)
    _key: torch.Tensor | None = field(default=None, init=False)

    def join(self, prompt_index: torch.Tensor) -> None:
        """Add a cohort of rows, which continue the prompts at `prompt_index`."""
        for layer in self.layers:
            layer.own.append(OwnKeys())
        everyone = torch.cat([self.prompt_index.to(prompt_index.device), prompt_index])
        self._arrange(everyone, [*self.cohorts, len(prompt_index)])

    def keep(self, index: torch.Tensor) -> None:
        """Continue with only the rows at `index`, which ascends."""
        ends = torch.tensor(self.cohorts).cumsum(0).tolist()
        stays = []
        for cohort, (end, size) in enumerate(zip(ends, self.cohorts, strict=True)):
            own = index[(index >= end - size) & (index < end)] - (end - size)
            stays.append(len(own))
            if 0 < len(own) < size:
                for layer in self.layers:
                    layer.own[cohort].keep(own)
        for layer in self.layers:
            layer.own = [own for own, size in zip(layer.own, stays, strict=True) if size]
        self._arrange(self.prompt_index[index], [size for size in stays if size])

    def _arrange(self, prompt_index: torch.Tensor, cohorts: list[int]) -> None:
        self.prompt_index, self.cohorts = prompt_index, cohorts
        self.groups = [Group(prompt, rows, 0) for prompt, rows in _rows_of_prompts(prompt_index)]
        if len(cohorts) == 1:
            self.groups_by_cohort = self.groups
            return
        self.groups_by_cohort, first = [], 0
        for cohort, part in enumerate(prompt_index.split(cohorts)):
            self.groups_by_cohort += [Group(prompt, rows, cohort) for prompt, rows in _rows_of_prompts(part, first)]
            first += len(part)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pending is not None or key_states.shape[2] != 1:
            raise CannotShare("keys were cached and not attended to")
        self._pending, self._key = self.layers[layer_idx], key_states
        parts = zip(self._pending.own, self.by_cohort(key_states), self.by_cohort(value_states), strict=True)
        for own, key, value in parts:
            own.append(key, value)
        return key_states, value_states

    def by_cohort(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the rows of each cohort, as views."""
        return (rows,) if len(self.cohorts) == 1 else rows.split(self.cohorts)

    def take(self, key: torch.Tensor) -> SharedLayer:
        """Return the layer whose keys [`update`] has just returned."""
        layer, self._pending = self._pending, None
        if layer is None or key is not self._key:
            raise CannotShare("the keys attended to are not the ones that were cached")
        return layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        layer = self.layers[layer_idx]
        return max(keys.shape[2] for keys, _ in layer.prefixes) + max((own.length for own in layer.own), default=0)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the step's attention read this cache inside, in this thread only."""
        with active(active_cache, self):
            yield
        if self._pending is not None:
            raise CannotShare("keys were cached and not attended to")


def _rows_of_prompts(prompt_index: torch.Tensor, first: int = 0) -> list[tuple[int, Rows]]:
    """Return each prompt in `prompt_index` with its rows, counted from `first`."""
    found: list[tuple[int, Rows]] = []
    for prompt in prompt_index.unique().tolist():
        rows = (prompt_index == prompt).nonzero().squeeze(-1) + first
        begin, end = int(rows[0]), int(rows[-1]) + 1
        # A slice reads the queries in place; an index copies them.
        found.append((prompt, slice(begin, end) if end - begin == len(rows) else rows))
    return found
