"""
The rule of speculative rejection: which unfinished responses to give up.
"""

from __future__ import annotations

import math

import torch


def num_rejected(num_racing: int, share: float, keep: int = 1) -> int:
    """
    Return how many of `num_racing` responses one review rejects: the share rounded down, leaving at least `keep`.

    Examples:

    ```python
    >>> [num_rejected(count, share=0.5) for count in (8, 7, 2, 1)]
    [4, 3, 1, 0]

    ```
    """
    # Without the margin 0.29 * 100, which is 28.999...96, would round down to 28.
    return max(0, min(math.floor(share * num_racing + 1e-9), num_racing - keep))


def rejected(rewards: torch.Tensor, share: float, keep: int = 1) -> torch.Tensor:
    r"""
    Return which responses a review rejects: the $\lfloor \alpha n \rfloor$ of lowest reward, $\alpha$ being the share.

    The rule of [speculative rejection](https://huggingface.co/papers/2410.20290), applied to the rewards of unfinished
    responses. Of equal rewards the later ones go; candidates are drawn from one law, so their order is arbitrary.

    Args:
        rewards (`torch.Tensor` of shape `(n,)`): Rewards of the responses in the race.
        share (`float`): In `[0, 1)`.
        keep (`int`, *optional*, defaults to 1): Fewest responses left.

    Returns:
        `torch.BoolTensor` of shape `(n,)`.

    Examples:

    ```python
    >>> import torch
    >>> rejected(torch.tensor([0.3, -1.0, 0.3, 2.0, 0.0]), share=0.6)
    tensor([False,  True,  True, False,  True])

    ```
    """
    count = num_rejected(len(rewards), share, keep)
    order = rewards.argsort(descending=True, stable=True)
    out = torch.zeros(len(rewards), dtype=torch.bool)
    out[order[len(rewards) - count :]] = True
    return out
