r"""
Transforms that are optimal for one decoding procedure at one `beta`: fixed points of
\\( \Phi(u) = \int_0^u g(v) g(F(v)) dv \\), \\( f \propto e^{\Phi / \beta} \\), `g` the procedure's density on ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError
from hf_itp.functional.transforms.base import Transform, check_beta
from hf_itp.functional.unit_grid import unit_grid

_TOLERANCE = 1e-9
_MAX_STEPS = 2_000
_MEMORY = 6
# The closer a polynomial is to an optimum, the larger its coefficients: beyond degree K / 3 the estimate's noise
# explodes. Degree 24 is within 0.2 % of the range of best-of-4's optimum at 0.9 nats, and 1e-8 of best-of-2's.
_MAX_DEGREE = 24
_REFERENCES_PER_DEGREE = 3


@dataclass(frozen=True)
class _OptimalTransform(Transform):
    n: int
    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_count("n", self.n, 1, "Pass the N of best-of-N."))
        object.__setattr__(self, "beta", check_beta(self.beta))

    def at_beta(self, beta: float) -> Transform:
        return dataclasses.replace(self, beta=beta)

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        values = unit_grid().interpolate(self._values(), u)
        return values.to(u.dtype) if u.is_floating_point() else values

    @abstractmethod
    def _values(self) -> torch.Tensor:
        """Return the transform at the grid's nodes."""

    def _table(self, num_reference: int) -> torch.Tensor:
        # E[a_S] over S ~ Binomial(K, u) is the polynomial with Bernstein coefficients a. Those of a polynomial near
        # the transform, raised to degree K, are an unbiased estimate of that polynomial.
        degree = max(1, min(_MAX_DEGREE, num_reference // _REFERENCES_PER_DEGREE))
        nodes = (1 - torch.cos(math.pi * torch.arange(degree + 1, dtype=torch.float64) / degree)) / 2
        powers = torch.arange(degree + 1, dtype=torch.float64)
        choose = torch.tensor([math.comb(degree, j) for j in range(degree + 1)], dtype=torch.float64)
        basis = choose * nodes[:, None] ** powers * (1 - nodes[:, None]) ** (degree - powers)
        coefficients = torch.linalg.solve(basis, self(nodes))
        for current in range(degree, num_reference):
            share = torch.arange(1, current + 1, dtype=torch.float64) / (current + 1)
            inner = share * coefficients[:-1] + (1 - share) * coefficients[1:]
            coefficients = torch.cat([coefficients[:1], inner, coefficients[-1:]])
        return coefficients


@dataclass(frozen=True)
class BestOfNOptimal(_OptimalTransform):
    r"""
    Maximize the best-of-`n` win rate minus `beta` KL:
    \\( \Phi(u) = n^2 \int_0^u v^{n-1} F(v)^{n-1} dv \\).

    Args:
        n (`int`): Of best-of-n.
        beta (`float`): KL strength it is optimal for, in win rates per nat. Train with the same.

    Examples:

    ```python
    >>> import torch
    >>> BestOfNOptimal(2, 0.5)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.0951, 0.9649])

    ```
    """

    name: ClassVar[str] = "best_of_n_optimal"

    def _values(self) -> torch.Tensor:
        return _best_of_n(self.n, self.beta)


@dataclass(frozen=True)
class WorstOfNOptimal(_OptimalTransform):
    r"""
    Maximize the worst-of-`n` win rate minus `beta` KL:
    \\( \Phi(u) = n^2 \int_0^u (1-v)^{n-1} (1-F(v))^{n-1} dv \\).

    Args:
        n (`int`): Of worst-of-n (best-of-n jailbreaking).
        beta (`float`): KL strength it is optimal for, in win rates per nat. Train with the same.
    """

    name: ClassVar[str] = "worst_of_n_optimal"

    def _values(self) -> torch.Tensor:
        return _worst_of_n(self.n, self.beta)


@functools.lru_cache(maxsize=256)
def _best_of_n(n: int, beta: float) -> torch.Tensor:
    return _fixed_point("best_of_n_optimal", n, beta, 0.1, lambda nodes, below: nodes * below)


@functools.lru_cache(maxsize=256)
def _worst_of_n(n: int, beta: float) -> torch.Tensor:
    # The full step is majorize-minimize here and so monotone.
    return _fixed_point("worst_of_n_optimal", n, beta, 1.0, lambda nodes, below: (1 - nodes) * (1 - below))


def _fixed_point(
    name: str, n: int, beta: float, damping: float, ranks: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """
    Return the transform at the grid's nodes, by damped steps on the log-density with Anderson acceleration.

    Without damping best-of-n oscillates; without acceleration it takes hundreds of steps.
    """
    grid = unit_grid()
    log_weights = grid.weights.log()
    log_density = torch.zeros_like(grid.nodes)
    steps: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    for _ in range(_MAX_STEPS):
        below = grid.running_integral(log_density.exp()).clamp(0, 1)
        values = grid.running_integral(n * n * ranks(grid.nodes, below) ** (n - 1))
        target = values / beta
        residual = target - (target + log_weights).logsumexp(dim=0) - log_density
        if float(residual.abs().max()) < _TOLERANCE:
            return values
        steps, residuals = [*steps[-_MEMORY:], log_density], [*residuals[-_MEMORY:], residual]
        log_density = log_density + damping * residual
        if len(steps) > 2:
            moved, changed = torch.stack(steps, 1).diff(dim=1), torch.stack(residuals, 1).diff(dim=1)
            # Weigh by the density, not by the number of nodes.
            importance = (grid.weights * steps[-1].exp()).sqrt()[:, None]
            share = torch.linalg.lstsq(importance * changed, importance * residual[:, None], driver="gelsd").solution
            log_density = log_density - ((moved + damping * changed) @ share)[:, 0]
        log_density = log_density - (log_density + log_weights).logsumexp(dim=0)
        if not bool(log_density.isfinite().all()):
            break
    raise _no_fixed_point(name, n, beta)


def _no_fixed_point(name: str, n: int, beta: float) -> ArgumentError:
    return ArgumentError(
        f"`beta` must be one that {name}(n={n}) can be solved for, got {beta}. Choose a larger beta, or an "
        "exponential transform."
    )
