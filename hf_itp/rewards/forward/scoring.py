"""
Rewards of many token sequences: those that begin alike share that part of the pass, others go in batches of similar
length.

Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_itp.rewards.forward import passes
from hf_itp.rewards.forward.batching import map_batches, scoring_bar
from hf_itp.rewards.forward.packing import CannotPack
from hf_itp.rewards.forward.prefixes import PrefixGroup, shared_prefixes
from hf_itp.rewards.forward.shared_prefix import SharedPrefix, packing_body
from hf_itp.rewards.options import BatchSize
from hf_itp.rewards.text.encoding import TokenSequence


class Budget(NamedTuple):
    """
    Args:
        tokens (`int`): Of a forward pass.
        pass_cost (`int`): Tokens it could take along in the time it costs by itself: what a shared prefix has to save,
            and what padding may waste.
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
    The logit of one label for each sequence.

    Args:
        model (`PreTrainedModel`): A sequence classifier.
        sequences (`Sequence[TokenSequence]`): At least one.
        label (`int`, *optional*, defaults to 0): Index of the label.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): Sequences per forward pass.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Whether what sequences begin with in common runs once, where the model takes that and it pays.
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
                logits, suffixes = _behind_prefix(model, body, group, [sequences[position] for position in members])
            except CannotPack:  # the model has been changed since it was first seen
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
    """What a forward pass may take where the model lies."""
    return _ON_CPU if passes.input_device(model).type == "cpu" else _ON_ACCELERATOR


def _of_label(logits: Logits, label: int) -> Logits:
    return lambda batch: logits(batch)[:, label]


def _shared(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], pass_cost: int
) -> list[tuple[PrefixGroup, Any]]:
    """The groups whose prefix is to run once, with the view of the model's body that does it; none if it cannot."""
    groups = shared_prefixes(sequences, pass_cost) if passes.pools_last_token(model) else []
    if not groups:
        return []
    passes.check_ids(model, sequences)
    body = packing_body(model, _tensor(model, sequences[groups[0].members[0]].ids))
    return [] if body is None else [(group, body) for group in groups]


def _behind_prefix(
    model: PreTrainedModel, body: Any, group: PrefixGroup, sequences: Sequence[TokenSequence]
) -> tuple[Logits, list[TokenSequence]]:
    """Runs what the sequences begin with; what scores the rest of them, and that rest."""
    prefix = SharedPrefix(body, _tensor(model, sequences[0].ids[: group.length]))

    def logits(suffixes: Sequence[TokenSequence]) -> torch.Tensor:
        hidden = prefix.last_hidden([_tensor(model, suffix.ids) for suffix in suffixes])
        return passes.score_hidden(model, hidden).float().cpu()

    start = group.length
    rest = [TokenSequence(ids[start:], types[start:], removable[start:]) for ids, types, removable, _ in sequences]
    return logits, rest


def _tensor(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=passes.input_device(model))
