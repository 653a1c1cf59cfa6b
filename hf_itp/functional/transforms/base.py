r"""
A transform of calibrated rewards: a function of \\( u \in [0, 1] \\), and its estimate from finitely many reference
rewards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from hf_itp.checks import check_count, check_positive
from hf_itp.errors import ArgumentError
from hf_itp.functional.unit_grid import unit_grid


class Transform(ABC):
    r"""
    Map calibrated rewards by a nondecreasing \\( \Phi: [0, 1] \to \mathbb{R} \\), the second step of CTRL
    ([InfAlign](https://huggingface.co/papers/2412.19792)). Transforms are values: they have no state, and equal ones
    compare equal.

    A subclass defines `__call__`, and `_table` if it has a better estimate than the transform of an estimated `u`.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Return the transform of calibrated rewards of any shape, in their floating-point type."""

    def estimate(self, counts: torch.Tensor, num_reference: int, ties: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        Estimate the transform of calibrated rewards from counts of reference rewards.

        Putting \\( \hat u = S / K \\) into a curved transform is biased: at `u = 1/2` by 48 % for `exponential(10)`
        and `K = 32`. Transforms that have an estimate without that bias use it. A tie counts as above or below with
        even chances, and the average over both is exact.

        Args:
            counts (`torch.Tensor`): Number of reference rewards below each reward, from 0 to `num_reference`.
            num_reference (`int`): `K`.
            ties (`torch.Tensor`, *optional*): Number of reference rewards equal to each reward.

        Returns:
            `torch.Tensor`: Of the shape of `counts`, float64.

        Raises:
            `ArgumentError`: If counts are out of range or not integers, or `K` is too small for this transform. Says
                which `K` is enough.

        Examples:

        ```python
        >>> import torch
        >>> from hf_itp.functional.transforms import get_transform
        >>> get_transform("identity").estimate(torch.tensor([1]), 4, ties=torch.tensor([2]))
        tensor([0.5000], dtype=torch.float64)

        ```
        """
        self.check_num_reference(num_reference)
        below, equal = _checked_counts(counts, ties, num_reference)
        return average_over_ties(self._table(num_reference), below, equal)

    def estimate_variance(self, u: torch.Tensor, num_reference: int) -> torch.Tensor:
        """Return the variance of [`estimate`] over draws of the references, at calibrated rewards `u` without ties."""
        mean, square = (self._moment(u, num_reference, power) for power in (1, 2))
        return square - mean.square()

    def estimate_mean(self, u: torch.Tensor, num_reference: int) -> torch.Tensor:
        """Return the mean of [`estimate`] over draws of the references: the transform itself if it has no bias."""
        return self._moment(u, num_reference, 1)

    def log_partition(self, beta: float) -> float:
        r"""Return \\( \log Z = \log \int_0^1 e^{\Phi(u) / \beta} du \\)."""
        beta = check_beta(beta)
        grid = unit_grid()
        exponents = self(grid.nodes) / beta
        return float((exponents + grid.weights.log()).logsumexp(dim=0))

    def at_beta(self, beta: float) -> Transform:
        """Return the transform to use at this `beta`: itself, except for optima, which are solved for one `beta`."""
        return self

    def check_num_reference(self, num_reference: int) -> None:
        """Raise `ArgumentError` if the transform cannot be estimated from so few reference rewards."""
        check_count("num_reference", num_reference, 1, "100 is usual.")

    def _table(self, num_reference: int) -> torch.Tensor:
        """Return the estimate for each count from 0 to `num_reference`, float64."""
        return self(torch.arange(num_reference + 1, dtype=torch.float64) / num_reference)

    def _moment(self, u: torch.Tensor, num_reference: int, power: int) -> torch.Tensor:
        self.check_num_reference(num_reference)
        u = torch.as_tensor(u, dtype=torch.float64)
        # torch's own Binomial refuses u = 0 and 1.
        counts = torch.arange(num_reference + 1, dtype=torch.float64)
        choose = _log_choose(num_reference, counts)
        law = (
            choose + torch.xlogy(counts, u[..., None]) + torch.xlogy(num_reference - counts, 1 - u[..., None])
        ).exp()
        return (law * self.estimate(counts, num_reference) ** power).sum(dim=-1)


def check_beta(beta: float) -> int | float:
    """Return the KL strength as a plain number if it is positive."""
    return check_positive("beta", beta, "Pass the strength of the KL regularization, in units of the transform.")


def average_over_ties(table: torch.Tensor, below: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """Return the mean of `table[below + B]` over `B ~ Binomial(equal, 1/2)`."""
    shape, below, equal = below.shape, below.flatten(), equal.flatten()
    result = table[below]
    for number in equal.unique().tolist():
        if number == 0:
            continue
        tied = equal == number
        heads = torch.arange(number + 1)
        chances = (_log_choose(number, heads.double()) - number * math.log(2)).exp()
        result[tied] = (table[below[tied][:, None] + heads] * chances).sum(dim=-1)
    return result.view(shape)


def _log_choose(total: int, chosen: torch.Tensor) -> torch.Tensor:
    whole = torch.tensor(float(total), dtype=torch.float64)
    return torch.lgamma(whole + 1) - torch.lgamma(chosen + 1) - torch.lgamma(whole - chosen + 1)


def _checked_counts(
    counts: torch.Tensor, ties: torch.Tensor | None, num_reference: int
) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.as_tensor(counts, dtype=torch.float64)
    equal = torch.zeros_like(counts) if ties is None else torch.as_tensor(ties, dtype=torch.float64)
    whole = bool((counts == counts.round()).all() and (equal == equal.round()).all())
    in_range = bool((counts >= 0).all() and (equal >= 0).all() and (counts + equal <= num_reference).all())
    if not whole or not in_range:
        raise ArgumentError(
            f"`counts` must hold whole numbers from 0 to num_reference={num_reference}, `ties` included, got "
            f"{counts.flatten()[:3].tolist()}, ... Pass the number of references below as `counts`, equal as `ties`."
        )
    return counts.long(), equal.long()
