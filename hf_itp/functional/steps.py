"""
One reward per response out of the probabilities that its steps are good.
"""

from __future__ import annotations

import torch

from hf_itp.checks import check_choice

STEP_AGGREGATIONS = ("min", "product", "last", "mean")


def aggregate_steps(probabilities: torch.Tensor, how: str = "min") -> torch.Tensor:
    r"""
    Combine step probabilities \\( p_1, \ldots, p_m \\): their minimum, \\( \prod_i p_i \\), \\( p_m \\) or mean.

    Args:
        probabilities (`torch.Tensor` of shape `(..., m)`): In `[0, 1]`, at least one step.
        how (`str`, *optional*, defaults to `"min"`): `"min"`, `"product"`, `"last"` or `"mean"`.

    Returns:
        `torch.Tensor` of shape `(...)`, in `[0, 1]`.

    Raises:
        `ArgumentError`: If `how` is none of the four.

    Examples:

    ```python
    >>> import torch
    >>> probabilities = torch.tensor([0.9, 0.5, 0.8])
    >>> [round(aggregate_steps(probabilities, how).item(), 4) for how in STEP_AGGREGATIONS]
    [0.5, 0.36, 0.8, 0.7333]

    ```
    """
    check_choice("how", how, STEP_AGGREGATIONS)
    if how == "last":
        return probabilities[..., -1]
    if how == "min":
        return probabilities.amin(dim=-1)
    return probabilities.prod(dim=-1) if how == "product" else probabilities.mean(dim=-1)
