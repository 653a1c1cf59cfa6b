"""Transforms with a formula: identity, logarithm, exponential, and a user's own function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.checks import check_count, check_number
from hf_itp.errors import ArgumentError
from hf_itp.functional.transforms.base import Transform, check_beta


@dataclass(frozen=True)
class Identity(Transform):
    r"""Keep the calibrated reward, \\( \Phi(u) = u \\): optimal for plain decoding. Its estimate is unbiased."""

    name: ClassVar[str] = "identity"

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return u

    def log_partition(self, beta: float) -> float:
        beta = check_beta(beta)
        # log(beta (e^(1/beta) - 1)) without overflow.
        return math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))


@dataclass(frozen=True)
class Log(Transform):
    r"""
    Take the logarithm, \\( \Phi(u) = \log u \\): the transform equivalent to distilling best-of-n.

    It is estimated at `max(u, 1/K)`. No estimate is unbiased, since estimates are bounded and `log u` is not.
    """

    name: ClassVar[str] = "log"

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return torch.log(u)

    def estimate(self, counts: torch.Tensor, num_reference: int, ties: torch.Tensor | None = None) -> torch.Tensor:
        u = Identity().estimate(counts, num_reference, ties)
        return u.clamp(min=1 / num_reference).log()

    def log_partition(self, beta: float) -> float:
        beta = check_beta(beta)
        return math.log(beta / (1 + beta))


@dataclass(frozen=True)
class Exponential(Transform):
    r"""
    Take the exponential, \\( \Phi(u) = \mathrm{sign}(t) e^{t u} \\): for best-of-n `t > 0`, for worst-of-n `t < 0`.

    For `t > 0` its estimate is unbiased for the Taylor polynomial of degree `K`,
    \\( T(S) = \sum_{j \le S} \frac{t^j}{j!} \frac{(S)_j}{(K)_j} \\). The polynomial's error is below 1e-3 of the value
    at the fewest references allowed, `K = 3 |t| + 2` (1e-8 for `t = 10`), and vanishes as `K` grows. For `t < 0` the
    mirror \\( e^{tu} = e^t e^{|t| (1 - u)} \\) is estimated, so that all terms are positive.

    Args:
        t (`float`): From -50 to 50, not 0. 5 is near the optimum for best-of-2, 10 for best-of-4.

    Examples:

    ```python
    >>> import torch
    >>> Exponential(5.0).estimate(torch.tensor([0, 20]), 20)
    tensor([  1.0000, 148.4131], dtype=torch.float64)

    ```
    """

    t: float
    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        remedy = "Pass e.g. 5 or 10 for best-of-n, -5 or -10 for worst-of-n."
        t = check_number("t", self.t, remedy, "from -50 to 50 and not 0", lambda t: 0 < abs(t) <= 50)
        object.__setattr__(self, "t", t)

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return math.copysign(1.0, self.t) * torch.exp(self.t * u)

    def check_num_reference(self, num_reference: int) -> None:
        # From fewer the bias may exceed a thousandth.
        needed = math.ceil(3 * abs(self.t)) + 2
        remedy = f"Draw {needed} or more references for exponential(t={self.t}), 3 |t| + 2, or choose a smaller t."
        check_count("num_reference", num_reference, needed, remedy)

    def _table(self, num_reference: int) -> torch.Tensor:
        table = _taylor_table(num_reference, abs(float(self.t)))
        return table if self.t > 0 else -math.exp(self.t) * table.flip(0)


@functools.lru_cache(maxsize=32)
def _taylor_table(num_reference: int, t: float) -> torch.Tensor:
    counts = torch.arange(num_reference + 1, dtype=torch.float64)
    term, total = torch.ones_like(counts), torch.ones_like(counts)
    for j in range(1, num_reference + 1):
        # Zero from j = S + 1 on, where the falling factorial ends.
        term = term * (t / j) * (counts - j + 1).clamp(min=0) / (num_reference - j + 1)
        total = total + term
    return total


@dataclass(frozen=True)
class Function(Transform):
    """
    Apply a user's own function, estimated by its value at the estimated quantile.

    Args:
        function (`Callable[[torch.Tensor], torch.Tensor]`): Nondecreasing on `[0, 1]`, elementwise.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    name: ClassVar[str] = "function"

    def __post_init__(self) -> None:
        values = self.function(torch.linspace(0, 1, 101, dtype=torch.float64)[1:])
        if not isinstance(values, torch.Tensor) or values.shape != (100,) or not bool(values.isfinite().all()):
            raise ArgumentError(
                "`transform` must map a tensor of quantiles to finite values, one each, but does not. Write it "
                "elementwise, e.g. lambda u: u**2."
            )
        if bool((values.diff() < -1e-9).any()):
            raise ArgumentError(
                "`transform` must be nondecreasing on [0, 1], but it falls, so a better response would be worth less. "
                "Use another function."
            )

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return self.function(u)

    def estimate(self, counts: torch.Tensor, num_reference: int, ties: torch.Tensor | None = None) -> torch.Tensor:
        return self.function(Identity().estimate(counts, num_reference, ties))
