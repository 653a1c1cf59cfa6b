"""
Draws from softmax(logits), one per row, each from the row's own stream of random numbers.

Knows nothing of models: a row of logits and a key go in, an index comes out.
"""

from __future__ import annotations

import torch

from hf_itp.functional.random import gumbel

# Entries within this many nats of the row's maximum race one by one; the rest race as one. Any value gives the same
# law. At 10 a language model's row has a few hundred entries of 50,000 in front and under 1 % of its mass behind.
_HEAD_NATS = 10.0


def sample_categorical(logits: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
    r"""
    One index per row from $\mathrm{softmax}(\mathrm{logits})$, by the Gumbel-max race: the index with the largest
    $\mathrm{logit}_i + G_i$.

    Only the head of each row draws its Gumbel numbers one by one. The tail races as a single entry of its total mass,
    and where it wins a second race inside it decides; the law is exactly the softmax. An entry's random number
    belongs to its index, so logits that differ in the last bit give the same draw but for a chance of that order.

    Args:
        logits (`torch.FloatTensor` of shape `(R, V)`): Unnormalised log-probabilities; `-inf` is never drawn.
        keys (`torch.LongTensor` of shape `(R,)`): One 64-bit key per row.
        step (`int`): Position in each row's stream.

    Returns:
        `torch.LongTensor` of shape `(R,)`.

    Examples:

    ```python
    >>> import torch
    >>> logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(30000, 3)
    >>> draws = sample_categorical(logits, torch.arange(30000), step=0)
    >>> [round(share, 2) for share in (draws.bincount(minlength=3) / 30000).tolist()]
    [0.2, 0.3, 0.5]

    ```
    """
    num_rows, vocabulary = logits.shape
    top = logits.amax(dim=-1, keepdim=True)
    in_head = logits >= top - _HEAD_NATS
    rows, indices = in_head.nonzero(as_tuple=True)
    race = logits[rows, indices].double() + gumbel(keys[rows], step, indices)
    best, winners = _winner_of_each_row(race, rows, indices, num_rows)

    tail_mass = (logits - top).exp_().masked_fill_(in_head, 0.0).sum(dim=-1).double()
    tail = tail_mass.log() + top.squeeze(-1).double() + gumbel(keys, step, torch.full_like(keys, vocabulary))
    in_tail = (tail > best).nonzero().squeeze(-1)
    if len(in_tail) > 0:
        winners[in_tail] = _race_in_tail(logits[in_tail], in_head[in_tail], keys[in_tail], step)
    return winners


def _winner_of_each_row(
    race: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    best = torch.full((num_rows,), -torch.inf, dtype=race.dtype, device=race.device)
    best.scatter_reduce_(0, rows, race, reduce="amax")
    won = race == best[rows]
    winners = torch.zeros(num_rows, dtype=torch.long, device=race.device)
    winners[rows[won]] = indices[won]
    return best, winners


def _race_in_tail(logits: torch.Tensor, in_head: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
    vocabulary = logits.shape[-1]
    # Places after those of the first race: the same numbers twice would tie the two races together.
    places = torch.arange(vocabulary + 1, 2 * vocabulary + 1, device=logits.device)
    race = logits.double() + gumbel(keys[:, None], step, places)
    return race.masked_fill_(in_head, -torch.inf).argmax(dim=-1)
