"""
Remove the padding that makes the prompts of a batch equally long.
"""

from __future__ import annotations

import torch


def unpadded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    """
    Return the tokens of each row without its padding.

    Examples:

    ```python
    >>> import torch
    >>> unpadded(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))
    [[5, 6]]

    ```
    """
    if attention_mask is None:
        return input_ids.tolist()
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
