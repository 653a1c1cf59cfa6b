"""
Which token sequences begin alike, and are cheaper to run with their beginning in common.

Knows nothing of models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hf_itp.rewards.text.encoding import TokenSequence


class PrefixGroup(NamedTuple):
    """Sequences, by position, whose first `length` tokens are the same. Each has at least one token more."""

    length: int
    members: tuple[int, ...]


def shared_prefixes(sequences: Sequence[TokenSequence], min_saved: int) -> list[PrefixGroup]:
    """
    Groups that save tokens if each runs its common prefix once.

    Sorted, sequences that begin alike are neighbours. A run of neighbours either forms one group or falls apart into
    runs that share more: prompts with the same system message save more as one group each.

    Args:
        sequences (`Sequence[TokenSequence]`): At least one token each.
        min_saved (`int`): Tokens that a group has to save to pay for its own forward pass.

    Returns:
        `list[PrefixGroup]`: Disjoint groups of at least two; a sequence in none is better run whole.

    Examples:

    ```python
    >>> texts = ["abcd", "abce", "xyz", "abcfg"]
    >>> sequences = [TokenSequence(tuple(map(ord, text)), (0,) * len(text), (True,) * len(text)) for text in texts]
    >>> shared_prefixes(sequences, min_saved=1)
    [PrefixGroup(length=3, members=(0, 1, 3))]

    ```
    """
    order = sorted(range(len(sequences)), key=lambda position: sequences[position].ids)
    ids = [sequences[position].ids for position in order]
    shared = [_num_shared(first, second) for first, second in itertools.pairwise(ids)]
    # Runs of neighbours that share `length` tokens, each inside the one below it; the lowest holds all.
    runs = [_Run(length=0, first=0)]
    for last, length in enumerate([*shared, 0], start=1):
        first, inner = last - 1, None
        while runs[-1].length > length:
            run = runs.pop()
            first, inner = run.first, run.best(last, min_saved)
            if runs[-1].length >= length:
                runs[-1].include(inner)
                inner = None
        if length > runs[-1].length:
            runs.append(_Run(length, first))
            if inner is not None:
                runs[-1].include(inner)
    return [PrefixGroup(length, tuple(sorted(order[first:last]))) for length, first, last in runs[0].groups]


@dataclass
class _Run:
    """Sorted neighbours from `first` on, what the groups inside it save, and these as `(length, first, last)`."""

    length: int
    first: int
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)

    def include(self, inner: _Run) -> None:
        self.saved += inner.saved
        self.groups += inner.groups

    def best(self, last: int, min_saved: int) -> _Run:
        """The run that ends before `last`, as one group if that saves more than the groups inside it."""
        together = (last - self.first - 1) * self.length - min_saved
        if together > 0 and together >= self.saved:
            return _Run(self.length, self.first, together, [(self.length, self.first, last)])
        return self


def _num_shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Tokens that both begin with, at least one left over in each."""
    low, high = 0, min(len(first), len(second)) - 1
    # Slices compare in C, which for prompts of thousands of tokens counts.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low
