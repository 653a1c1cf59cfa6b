"""
Draws of indices from a law over a pool, and a measure of how concentrated the law is.

Knows nothing of rewards or of the rule that gave the law.
"""

from __future__ import annotations

import torch

from hf_itp.arrays import as_floats
from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError


def effective_sample_size(probabilities: torch.Tensor) -> torch.Tensor:
    r"""
    Return how many candidates a law effectively chooses among: \\( 1 / \sum_i p_i^2 \\).

    1 if one candidate has all the mass, `N` if all have the same.

    Args:
        probabilities (`torch.Tensor` of shape `(..., N)`): Laws that sum to 1.

    Returns:
        `torch.Tensor` of shape `(...)`, in `[1, N]`.

    Examples:

    ```python
    >>> import torch
    >>> effective_sample_size(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]))
    tensor([1., 4.])

    ```
    """
    return as_floats(probabilities, "probabilities").square().sum(dim=-1).reciprocal()


def sample_without_replacement(
    probabilities: torch.Tensor,
    k: int,
    generator: torch.Generator | None = None,
    then_by: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Draw `k` different indices per row, in order: the first from `probabilities`, each further one from the same law
    restricted to the rest.

    An exponential race has exactly this law: entry `i` arrives at time \\( E_i / p_i \\) with independent standard
    exponential \\( E_i \\), and the first `k` arrivals are returned. Entries of probability zero never arrive; they
    follow after all others, the highest `then_by` first, ties in `then_by` in random order.

    Args:
        probabilities (`torch.Tensor` of shape `(..., N)`):
            Nonnegative, with some mass in every row. Rows need not sum to 1.
        k (`int`): How many indices per row, from 1 to `N`.
        generator (`torch.Generator`, *optional*):
            Source of randomness, by default torch's global one. Gives one uniform number per entry, on its own device.
        then_by (`torch.Tensor` of shape `(..., N)`, *optional*):
            Order of the entries of probability zero, by default random.

    Returns:
        `torch.LongTensor` of shape `(..., k)`, on the device of `probabilities`.

    Raises:
        `ValueError`: If `k` is not an integer from 1 to `N`, or a row is negative or without mass.

    Examples:

    ```python
    >>> import torch
    >>> law = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> sample_without_replacement(law, 2, then_by=torch.tensor([[3.0, 9.0, 5.0], [7.0, 1.0, 9.0]]))
    tensor([[1, 2],
            [2, 0]])

    ```
    """
    probabilities = as_floats(probabilities, "probabilities")
    size = probabilities.shape[-1] if probabilities.dim() else 0
    k = check_count("k", k, 1, "Ask for fewer indices.", size, "entries per row")
    probabilities = probabilities.detach().to(torch.float64)
    # Written so that a NaN fails both comparisons.
    if not ((probabilities >= 0).all() and (probabilities.sum(dim=-1) > 0).all()):
        raise ArgumentError(
            "`probabilities` must be nonnegative with some mass in every row. Return a law from "
            "`Strategy.probabilities`."
        )
    device = generator.device if generator is not None else probabilities.device
    uniforms = torch.rand(probabilities.shape, dtype=torch.float64, device=device, generator=generator)
    uniforms = uniforms.to(probabilities.device)
    # A uniform number can be exactly 0, and 0 / 0 is not an arrival time.
    times = (-uniforms).log1p_().neg_().clamp_min_(2.0**-60).div_(probabilities)  # (..., N)
    if k == 1:
        return times.argmin(dim=-1, keepdim=True)
    picks = times.topk(k, dim=-1, largest=False).indices
    num_supported = (probabilities > 0).sum(dim=-1, keepdim=True)
    if (num_supported < k).any():
        preference = torch.zeros_like(times) if then_by is None else as_floats(then_by, "then_by").to(times)
        rest = _highest(preference.masked_fill(probabilities > 0, -torch.inf), k, uniforms)
        place = torch.arange(k, device=picks.device)
        picks = torch.where(place < num_supported, picks, rest.gather(-1, (place - num_supported).clamp_min(0)))
    return picks


def _highest(values: torch.Tensor, k: int, uniforms: torch.Tensor) -> torch.Tensor:
    """Return indices `(..., k)` of the highest values in descending order, ties broken by the uniform numbers."""
    edge = values.topk(k, dim=-1).values[..., -1:]
    places = torch.where(values > edge, 2.0, torch.where(values == edge, uniforms, -1.0)).topk(k, dim=-1).indices
    shuffled = places.gather(-1, uniforms.gather(-1, places).argsort(dim=-1))
    return shuffled.gather(-1, values.gather(-1, shuffled).argsort(dim=-1, descending=True, stable=True))
