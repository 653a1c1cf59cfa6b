"""
Rewards of many token sequences: those that begin alike share that part of the pass, others go in batches of similar
length.

Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_itp.rewards import forward
from hf_itp.rewards.batching import BatchSize, map_batches, scoring_bar
from hf_itp.rewards.encoding import TokenSequence
from hf_itp.rewards.prefixes import PrefixGroup, shared_prefixes
from hf_itp.rewards.shared_prefix import SharedPrefix, packing_body

# Tokens a forward pass could take along in the time it costs by itself: what sharing has to save, and padding may waste.
_PASS_COST_CPU = 64
_PASS_COST_ACCELERATOR = 2_048

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
    on_cpu = forward.input_device(model).type == "cpu"
    pass_cost = _PASS_COST_CPU if on_cpu else _PASS_COST_ACCELERATOR
    results = torch.empty(len(sequences))
    rest = set(range(len(sequences)))
    with forward.evaluating(model), scoring_bar(len(sequences), progress) as bar:
        for group, body in _shared(model, sequences, pass_cost) if share_prefixes else []:
            members = list(group.members)
            logits, suffixes = _behind_prefix(model, body, group, [sequences[position] for position in members])
            results[members] = map_batches(_of_label(logits, label), suffixes, batch_size, bar)
            rest.difference_update(members)
        if rest:
            remaining = sorted(rest)
            whole = [sequences[position] for position in remaining]
            plain = _of_label(lambda batch: forward.logits(model, batch), label)
            results[remaining] = map_batches(plain, whole, batch_size, bar, max_padding=pass_cost)
    return results


def _of_label(logits: Logits, label: int) -> Logits:
    return lambda batch: logits(batch)[:, label]


def _shared(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], pass_cost: int
) -> list[tuple[PrefixGroup, Any]]:
    """The groups whose prefix is to run once, with the view of the model's body that does it; none if it cannot."""
    groups = shared_prefixes(sequences, pass_cost) if forward.pools_last_token(model) else []
    if not groups:
        return []
    forward.check_ids(model, sequences)
    body = packing_body(model, _tensor(model, sequences[groups[0].members[0]].ids))
    return [] if body is None else [(group, body) for group in groups]


def _behind_prefix(
    model: PreTrainedModel, body: Any, group: PrefixGroup, sequences: Sequence[TokenSequence]
) -> tuple[Logits, list[TokenSequence]]:
    """Runs what the sequences begin with; what scores the rest of them, and that rest."""
    prefix = SharedPrefix(body, _tensor(model, sequences[0].ids[: group.length]))

    def logits(suffixes: Sequence[TokenSequence]) -> torch.Tensor:
        hidden = prefix.last_hidden([_tensor(model, suffix.ids) for suffix in suffixes])
        return forward.score_hidden(model, hidden).float().cpu()

    return logits, [TokenSequence(*(part[group.length :] for part in sequence)) for sequence in sequences]


def _tensor(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(ids, device=forward.input_device(model))
