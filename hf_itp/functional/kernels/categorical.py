"""
Draws from softmax(logits), one per row, each by the row's own stream of random numbers.

Knows nothing of models: a row of logits and a key in, an index out.
"""

from __future__ import annotations

import torch

from hf_itp.errors import DistributionError
from hf_itp.functional.kernels.random import gumbel

# Entries in a block: about the square root of a language model's vocabulary, so that both races, of the blocks and
# inside the winner, need few random numbers. Any size gives the same law.
_BLOCK = 256


def sample_categorical(
    logits: torch.Tensor, keys: torch.Tensor, step: int | torch.Tensor, matters: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Draw one index per row from $\mathrm{softmax}(\mathrm{logits})$, by two Gumbel-max races: the block of entries with
    the largest $\log m_b + G_b$, where $m_b$ is the mass of the block, then within it the entry with the largest
    $\mathrm{logit}_i + G_i$.

    The law is exactly the softmax, at the cost of one softmax and a few hundred random numbers per row. Each block and
    entry has its own random number by position, so logits that differ in the last bit change the draw only with a
    probability of that order; inverting the distribution function would multiply it by the vocabulary.

    Args:
        logits (`torch.FloatTensor` of shape `(R, V)`): Unnormalised log-probabilities; `-inf` is never drawn.
        keys (`torch.LongTensor` of shape `(R,)`): One 64-bit key per row.
        step (`int` or `torch.LongTensor` of shape `(R,)`): Position in each row's stream.
        matters (`torch.BoolTensor` of shape `(R,)`, *optional*): Rows that must be distributions, by default all. What
            is drawn for the others is meaningless.

    Returns:
        `torch.LongTensor` of shape `(R,)`.

    Raises:
        `DistributionError`: If a row that matters holds a NaN or `+inf`, or only `-inf`. Its `row` says which.

    Examples:

    ```python
    >>> import torch
    >>> logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(30000, 3)
    >>> draws = sample_categorical(logits, torch.arange(30000), step=0)
    >>> [round(share, 2) for share in (draws.bincount(minlength=3) / 30000).tolist()]
    [0.2, 0.3, 0.5]

    ```
    """
    vocabulary = logits.shape[-1]
    step = step if isinstance(step, int) else step[:, None]
    masses = _block_masses(logits.softmax(dim=-1))  # (R, blocks)
    # The softmax of a row that is not a distribution is NaN, which the sum over its few blocks shows at no cost.
    _check_rows(logits, ~masses.sum(dim=-1).isfinite(), matters)
    num_blocks = masses.shape[-1]
    places = torch.arange(num_blocks, device=logits.device)
    block = (masses.double().log() + gumbel(keys[:, None], step, places)).argmax(dim=-1, keepdim=True)

    entries = block * _BLOCK + torch.arange(_BLOCK, device=logits.device)  # (R, _BLOCK)
    missing = entries >= vocabulary  # the last block may be short
    entries = entries.clamp(max=vocabulary - 1)
    # Places after those of the blocks: the two races need independent numbers.
    race = logits.gather(-1, entries).double() + gumbel(keys[:, None], step, num_blocks + entries)
    winner = race.masked_fill_(missing, -torch.inf).argmax(dim=-1, keepdim=True)
    return entries.gather(-1, winner).squeeze(-1)


def most_probable(logits: torch.Tensor, matters: torch.Tensor | None = None) -> torch.Tensor:
    """
    Return the index of the largest of each row's logits.

    Args:
        logits (`torch.FloatTensor` of shape `(R, V)`): Unnormalised log-probabilities.
        matters (`torch.BoolTensor` of shape `(R,)`, *optional*): As in [`sample_categorical`].

    Returns:
        `torch.LongTensor` of shape `(R,)`.

    Raises:
        `DistributionError`: As in [`sample_categorical`]; an argmax would pick a NaN.

    Examples:

    ```python
    >>> import torch
    >>> most_probable(torch.tensor([[0.2, 0.3], [0.5, 0.1]]))
    tensor([1, 0])

    ```
    """
    largest, index = logits.max(dim=-1)
    _check_rows(logits, ~largest.isfinite(), matters)
    return index


def _check_rows(logits: torch.Tensor, broken: torch.Tensor, matters: torch.Tensor | None) -> None:
    broken = broken if matters is None else broken & matters
    if not bool(broken.any()):
        return
    row = int(broken.nonzero()[0])
    values = logits[row]
    if bool(values.isnan().any()):
        reason = "are NaN"
    elif bool((values == torch.inf).any()):
        reason = "are infinite"
    else:
        reason = "are -inf for every token"
    raise DistributionError(reason, row)


def _block_masses(probabilities: torch.Tensor) -> torch.Tensor:
    num_rows, vocabulary = probabilities.shape
    whole = vocabulary - vocabulary % _BLOCK
    masses = probabilities[:, :whole].reshape(num_rows, -1, _BLOCK).sum(dim=-1)
    if whole == vocabulary:
        return masses
    return torch.cat([masses, probabilities[:, whole:].sum(dim=-1, keepdim=True)], dim=-1)
