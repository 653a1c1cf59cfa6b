r"""
The trade-off of a transform: KL and win rates of the policy \\( \pi \propto \pi_{ref} e^{\Phi(u) / \beta} \\), decoded
plainly or by any procedure that ranks its own draws. One-dimensional integrals, no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_itp.checks import check_count, check_number
from hf_itp.errors import ArgumentError
from hf_itp.functional.transforms import Transform, get_transform
from hf_itp.functional.transforms.base import check_beta
from hf_itp.functional.unit_grid import unit_grid

Ranks = Callable[[torch.Tensor], torch.Tensor]
_KL_TOLERANCE = 1e-12


@dataclass(frozen=True)
class AlignmentTradeoff:
    """
    Compare a policy tilted by a transform with the reference policy.

    Args:
        log_density (`torch.Tensor`): Log-density of calibrated rewards under the policy, at the grid's nodes.
    """

    log_density: torch.Tensor

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence from the reference policy, in nats."""
        return float(unit_grid().integrate(self.log_density.exp() * self.log_density))

    @property
    def win_rate(self) -> float:
        """Chance that a response of the policy beats one of the reference policy, ties half."""
        grid = unit_grid()
        return float(grid.integrate(self.log_density.exp() * grid.nodes))

    def best_of_n_win_rate(self, n: int) -> float:
        """Return the same for the best of `n` responses of each."""
        _check_n(n)
        return self.procedure_win_rate(lambda v: n * v ** (n - 1), lambda v: v**n)

    def worst_of_n_win_rate(self, n: int) -> float:
        """Return the same for the worst of `n` responses of each."""
        _check_n(n)
        return self.procedure_win_rate(lambda v: n * (1 - v) ** (n - 1), lambda v: 1 - (1 - v) ** n)

    def procedure_win_rate(self, density: Ranks, distribution: Ranks) -> float:
        r"""
        Return the same for a procedure that picks a response of each by its rank:
        \\( 1 - \int_0^1 g(u) G(F(u)) du \\).

        Args:
            density (`Callable`): `g`, the density of the rank in `[0, 1]` of the response picked.
            distribution (`Callable`): `G`, its integral from 0.
        """
        grid = unit_grid()
        below = grid.running_integral(self.log_density.exp()).clamp(0, 1)
        return 1 - float(grid.integrate(density(grid.nodes) * distribution(below)))


def alignment_tradeoff(transform: str | Transform, beta: float, **fields: float) -> AlignmentTradeoff:
    r"""
    Return KL and win rates of the optimum of \\( E_\pi[\Phi(C)] - \beta KL(\pi \| \pi_{ref}) \\), for rewards without
    ties.

    Calibrated rewards are uniform under the reference policy, so under the optimum they have density
    \\( f(u) = e^{\Phi(u) / \beta} / Z \\) whatever the task. From [InfAlign](https://huggingface.co/papers/2412.19792),
    theorem on calibrated rewards; the integrals are derived from it.

    Args:
        transform (`str` or [`~functional.transforms.Transform`]): What [`~functional.transforms.get_transform`] takes.
        beta (`float`): KL strength, in units of the transform.
        fields: Of a transform given by name.

    Returns:
        [`AlignmentTradeoff`]: With `kl` in nats, `win_rate`, `best_of_n_win_rate(n)` and `worst_of_n_win_rate(n)`.

    Raises:
        `ArgumentError`: If `beta` is not positive, or the transform is unknown.

    Examples:

    ```python
    >>> tradeoff = alignment_tradeoff("log", beta=1.0)  # density 2u: the law of the better of two
    >>> round(tradeoff.win_rate, 6), round(tradeoff.kl, 6)
    (0.666667, 0.193147)

    ```
    """
    beta = check_beta(beta)
    grid = unit_grid()
    exponents = get_transform(transform, **fields)(grid.nodes) / beta
    return AlignmentTradeoff(exponents - (exponents + grid.weights.log()).logsumexp(dim=0))


def beta_for_kl(transform: str | Transform, kl: float, **fields: float) -> float:
    """
    Return the `beta` at which a transform's optimum is `kl` nats from the reference policy.

    The units of `beta` are those of the transform and differ by orders of magnitude; `kl` means the same for all. An
    optimal transform is solved again at each `beta`.

    Args:
        transform (`str` or [`~functional.transforms.Transform`]): What [`~functional.transforms.get_transform`] takes.
        kl (`float`): In nats, above 0 and at most 10.
        fields: Of a transform given by name; an optimal one needs no `beta`.

    Returns:
        `float`: In units of the transform.

    Raises:
        `ArgumentError`: If `kl` is out of range, or no `beta` gives it.

    Examples:

    ```python
    >>> round(beta_for_kl("exponential", 0.5, t=10), 1)
    7011.9

    ```
    """
    remedy = "Pass a divergence in nats, e.g. 0.5."
    kl = check_number("kl", kl, remedy, "positive and at most 10", lambda kl: 0 < kl <= 10)
    if isinstance(transform, str) and transform.endswith("_optimal"):
        fields = {"beta": 1.0, **fields}
    form = get_transform(transform, **fields)

    def excess(log_beta: float) -> float:
        beta = math.exp(log_beta)
        return math.log(max(alignment_tradeoff(form.at_beta(beta), beta).kl, 1e-300)) - math.log(kl)

    return math.exp(_root(excess, start=0.0))


def _root(function: Callable[[float], float], start: float) -> float:
    """Return the root of a decreasing function: bracket it in doubling steps, then use the Illinois method."""
    low = high = start
    at_low = at_high = function(start)
    step = 1.0
    while at_low < 0 or at_high > 0:
        if at_high > 0:
            low, at_low, high = high, at_high, high + step
            at_high = function(high)
        else:
            high, at_high, low = low, at_low, low - step
            at_low = function(low)
        step *= 2
        if step > 1e4:
            raise ArgumentError("`kl` must be one that some `beta` gives, but none does. Choose another value.")
    for _ in range(200):
        middle = high - at_high * (high - low) / (at_high - at_low) if at_high != at_low else (low + high) / 2
        value = function(middle)
        if abs(value) < _KL_TOLERANCE or high - low < 1e-14:
            return middle
        if value > 0:
            low, at_low, at_high = middle, value, at_high / 2
        else:
            high, at_high, at_low = middle, value, at_low / 2
    return middle


def _check_n(n: int) -> int:
    return check_count("n", n, 1, "Pass the N of best-of-N.")
