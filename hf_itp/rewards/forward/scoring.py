"""
Logits of many token sequences: a beginning that several share runs once, the rest in batches of similar length, which
shrink when memory runs out.

Knows nothing of text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_itp.rewards.forward import passes
from hf_itp.rewards.forward.shared_prefix import CannotPack, SharedPrefix, packing_body
from hf_itp.rewards.options import BatchSize
from hf_itp.rewards.text.encoding import TokenSequence


class Budget(NamedTuple):
    """
    Size of a forward pass.

    Args:
        tokens (`int`): Tokens of one pass.
        pass_cost (`int`): Tokens that take as long as starting a pass: a shared prefix must save more, and padding may
            waste as many.
    """

    tokens: int
    pass_cost: int


# A CPU's caches hold the activations of some 2,000 tokens; 32 conversations of 512 keep an accelerator busy.
_ON_CPU = Budget(tokens=2_048, pass_cost=64)
_ON_ACCELERATOR = Budget(tokens=16_384, pass_cost=2_048)

Logits = Callable[[Sequence[TokenSequence]], torch.Tensor]


def label_logits(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    label: int = 0,
    batch_size: BatchSize = "auto",
    share_prefixes: bool = True,
    progress: bool = False,
) -> torch.Tensor:
    """
    Return the logit of one label for each sequence.

    Args:
        model (`PreTrainedModel`): A sequence classifier.
        sequences (`Sequence[TokenSequence]`): At least one.
        label (`int`, *optional*, defaults to 0): Index of the label.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): Sequences per forward pass.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Whether a common beginning of sequences runs once, where the model allows that and it saves time.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `torch.Tensor` of shape `(len(sequences),)`, float32, on the CPU.
    """
    budget = budget_of(model)
    results = torch.empty(len(sequences), dtype=torch.float32)
    rest = set(range(len(sequences)))
    with passes.evaluating(model), scoring_bar(len(sequences), progress) as bar:
        for group, body in _shared(model, sequences, budget.pass_cost) if share_prefixes else []:
            members = list(group.members)
            try:
                logits, suffixes = _after_prefix(model, body, group, [sequences[position] for position in members])
            except CannotPack:  # the model was changed after its first use
                break
            results[members] = map_batches(_of_label(logits, label), suffixes, batch_size, bar, budget.tokens)
            rest.difference_update(members)
        if rest:
            remaining = sorted(rest)
            whole = [sequences[position] for position in remaining]
            plain = _of_label(lambda batch: passes.logits(model, batch), label)
            results[remaining] = map_batches(plain, whole, batch_size, bar, *budget)
    return results


def budget_of(model: PreTrainedModel) -> Budget:
    """Return the size of a forward pass on the model's device."""
    return _ON_CPU if passes.input_device(model).type == "cpu" else _ON_ACCELERATOR


def _of_label(logits: Logits, label: int) -> Logits:
    return lambda batch: logits(batch)[:, label]


def _shared(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], pass_cost: int
) -> list[tuple[PrefixGroup, Any]]:
    """Return each group whose prefix runs once, with the view of the model's body that does it."""
    groups = shared_prefixes(sequences, pass_cost) if passes.pools_last_token(model) else []
    if not groups:
        return []
    passes.check_ids(model, sequences)
    body = packing_body(model, _tensor(model, sequences[groups[0].members[0]].ids))
    return [] if body is None else [(group, body) for group in groups]


def _after_prefix(
    model: PreTrainedModel, body: Any, group: PrefixGroup, sequences: Sequence[TokenSequence]
) -> tuple[Logits, list[TokenSequence]]:
    """Run the common prefix of sequences; return a function that scores suffixes, and the suffixes."""
    prefix = SharedPrefix(body, _tensor(model, sequences[0].ids[: group.length]))

    def logits(batch: Sequence[TokenSequence]) -> torch.Tensor:
        hidden = prefix.last_hidden([_tensor(model, suffix.ids) for suffix in batch])
        return passes.score_hidden(model, hidden).float().cpu()

    start = group.length
    suffixes = [TokenSequence(ids[start:], types[start:], removable[start:]) for ids, types, removable, _ in sequences]
    return logits, suffixes


def _tensor(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=passes.input_device(model))


def scoring_bar(count: int, progress: bool) -> tqdm:
    """Return a bar over `count` responses, shown if `progress` and if transformers' progress bars are enabled."""
    shown = progress and logging.is_progress_bar_enabled()
    return tqdm(total=count, desc="Scoring", unit="response", disable=not shown)


def once_each(sequences: Sequence[TokenSequence]) -> tuple[list[TokenSequence], list[int]]:
    """Return the distinct sequences and where each of the given ones is among them, as candidates often repeat."""
    place = {sequence: position for position, sequence in enumerate(dict.fromkeys(sequences))}
    return list(place), [place[sequence] for sequence in sequences]


def map_batches(
    function: Callable[[Sequence[TokenSequence]], torch.Tensor],
    sequences: Sequence[TokenSequence],
    batch_size: BatchSize = "auto",
    bar: tqdm | None = None,
    max_tokens: int = 16_384,
    max_padding: int | None = None,
) -> torch.Tensor:
    """
    Return `function` of every sequence, in order, computed in batches of at most `batch_size` sequences.

    The longest sequences come first, so a batch wastes little on padding and memory runs out at the start if at all.
    Then batches are halved for the rest of the work; a single sequence that does not fit is an error.

    Args:
        function (`Callable`): From a batch of `b` sequences to a tensor of shape `(b,)`.
        sequences (`Sequence[TokenSequence]`): At least one.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): `"auto"` depends on their lengths.
        bar (`tqdm`, *optional*): Advanced by each batch.
        max_tokens (`int`, *optional*, defaults to 16384): Tokens of a batch under `"auto"`, padding included.
        max_padding (`int`, *optional*): Padding tokens of a batch under `"auto"`; no limit without it.

    Returns:
        `torch.Tensor` of shape `(len(sequences),)`, float32.
    """
    order = sorted(range(len(sequences)), key=lambda position: -len(sequences[position].ids))
    lengths = [len(sequences[position].ids) for position in order]
    results = torch.empty(len(sequences), dtype=torch.float32)
    shrink, done = 1, 0
    while done < len(order):
        batch = order[done : done + _size(batch_size, lengths, done, shrink, max_tokens, max_padding)]
        try:
            results[batch] = function([sequences[position] for position in batch])
        except RuntimeError as error:
            if len(batch) == 1 or not should_reduce_batch_size(error):
                raise
            out_of_memory = True
        else:
            out_of_memory = False
        # Outside `except`: inside, the traceback still holds the tensors to free.
        if out_of_memory:
            shrink *= 2
            clear_device_cache(garbage_collection=True)
            continue
        done += len(batch)
        if bar is not None:
            bar.update(len(batch))
    return results


def _size(
    batch_size: BatchSize, lengths: list[int], done: int, shrink: int, max_tokens: int, max_padding: int | None
) -> int:
    """Return the size of the batch that begins at `done`, for `lengths` in descending order."""
    if batch_size != "auto":
        return max(1, batch_size // shrink)
    longest = lengths[done]
    size = max(1, max_tokens // longest // shrink)
    if max_padding is None:
        return size
    padding = itertools.accumulate(longest - length for length in lengths[done : done + size])
    return sum(1 for tokens in padding if tokens <= max_padding)


class PrefixGroup(NamedTuple):
    """Sequences, by position, with the same first `length` tokens and at least one more."""

    length: int
    members: tuple[int, ...]


def shared_prefixes(sequences: Sequence[TokenSequence], min_saved: int) -> list[PrefixGroup]:
    """
    Return the groups that save tokens if each runs its common prefix once.

    Once sorted, sequences that begin alike are neighbours. A run of neighbours either forms one group or splits into
    runs that share more: prompts with the same system message save more as one group each.

    Args:
        sequences (`Sequence[TokenSequence]`): At least one token each.
        min_saved (`int`): A group must save more tokens than this.

    Returns:
        `list[PrefixGroup]`: Disjoint groups of at least two sequences. The others should run whole.

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
    # A stack of runs of neighbours that share `length` tokens, each inside the one below; the lowest holds all.
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
    """Sorted neighbours from `first` on, the groups inside as `(length, first, last)`, and the tokens these save."""

    length: int
    first: int
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)

    def include(self, inner: _Run) -> None:
        self.saved += inner.saved
        self.groups += inner.groups

    def best(self, last: int, min_saved: int) -> _Run:
        """Return the run that ends before `last`, as one group if that saves more than the groups inside it."""
        together = (last - self.first - 1) * self.length - min_saved
        if together > 0 and together >= self.saved:
            return _Run(self.length, self.first, together, [(self.length, self.first, last)])
        return self


def _num_shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the number of common first tokens, with at least one left over in each."""
    low, high = 0, min(len(first), len(second)) - 1
    # Slices are compared in C, much faster than token by token.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low
