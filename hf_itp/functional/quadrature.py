"""
Gauss-Legendre quadrature, exact for polynomials such as those integrated over acceptance orders.
"""

from __future__ import annotations

import math

import torch


def gauss_legendre(num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Return nodes and weights on `[0, 1]` that integrate every polynomial of degree up to `2 * num_nodes - 1` exactly.

    Found by Newton's method on the Legendre polynomial of degree `m`, from its asymptotic roots
    \\( \cos(\pi(i - 1/4)/(m + 1/2)) \\).

    Args:
        num_nodes (`int`): At least 1.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)` of shape `(num_nodes,)`, float64: Nodes, ascending, and weights of sum 1.

    Examples:

    ```python
    >>> nodes, weights = gauss_legendre(3)
    >>> round((weights * nodes**5).sum().item(), 12) == round(1 / 6, 12)
    True

    ```
    """
    index = torch.arange(num_nodes, 0, -1, dtype=torch.float64)
    roots = torch.cos(math.pi * (index - 0.25) / (num_nodes + 0.5))
    slope = torch.ones_like(roots)
    # Four steps reach full precision from these starts; the fifth is a cheap margin.
    for _ in range(5):
        before, value = torch.ones_like(roots), roots
        for degree in range(2, num_nodes + 1):
            before, value = value, ((2 * degree - 1) * roots * value - (degree - 1) * before) / degree
        slope = num_nodes * (roots * value - before) / (roots.square() - 1)
        roots = roots - value / slope
    return (1 + roots) / 2, 1 / ((1 - roots.square()) * slope.square())
