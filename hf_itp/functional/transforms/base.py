r"""
What a transform of calibrated rewards is: a function of \\( u \in [0, 1] \\), and its estimate from finitely many
reference rewards.
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
    \\( \Phi: [0, 1] \to \mathbb{R} \\), nondecreasing: the second step of CTRL
    ([InfAlign](https://huggingface.co/papers/2412.19792)). Transforms are values: equal ones compare equal, none has
    state.

    A subclass defines `__call__`, and `_table` where it can do better than to put an estimate of `u` into it.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """The transform of calibrated rewards of any shape, in their floating-point type."""

    def estimate(self, counts: torch.Tensor, num_reference: int, ties: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        The transform of a calibrated reward of which only counts are known.

        Putting \\( \hat u = S / K \\) into a curved transform is biased: at `u = 1/2` by 48 % for `exponential(10)`
        and `K = 32`. Transforms that can be estimated without that bias are; a tie counts as above or below with even
        chances, and the average over them is taken exactly.

        Args:
            counts (`torch.Tensor`): Reference rewards below each reward, whole numbers from 0 to `num_reference`.
            num_reference (`int`): `K`.
            ties (`torch.Tensor`, *optional*): Reference rewards equal to each reward, of the shape of `counts`.

        Returns:
            `torch.Tensor`: Of the shape of `counts`, float64.

        Raises:
            `ArgumentError`: If counts are out of range or not whole, or `K` is too small for this transform; says
                which `K` would do.

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
        """Variance of [`estimate`] over the draw of the references, at true calibrated rewards `u` without ties."""
        mean, square = (self._moment(u, num_reference, power) for power in (1, 2))
        return square - mean.square()

    def estimate_mean(self, u: torch.Tensor, num_reference: int) -> torch.Tensor:
        """Mean of [`estimate`] over the draw of the references: the transform itself where there is no bias."""
        return self._moment(u, num_reference, 1)

    def log_partition(self, beta: float) -> float:
        r"""\\( \log Z = \log \int_0^1 e^{\Phi(u) / \beta} du \\)."""
        beta = check_positive("beta", beta, "Pass the strength of the KL regularization, in units of the transform.")
        grid = unit_grid()
        exponents = self(grid.nodes) / beta
        return float((exponents + grid.weights.log()).logsumexp(dim=0))

    def at_beta(self, beta: float) -> Transform:
        """The transform to be used at this `beta`: itself, but for optima, which are solved for a `beta`."""
        return self

    def check_num_reference(self, num_reference: int) -> None:
        """
        Raises:
            `ArgumentError`: If the transform cannot be estimated from so few reference rewards.
        """
        check_count("num_reference", num_reference, 1, "100 is usual.")

    def _table(self, num_reference: int) -> torch.Tensor:
        """The estimate for each count from 0 to `num_reference`, float64."""
        return self(torch.arange(num_reference + 1, dtype=torch.float64) / num_reference)

    def _moment(self, u: torch.Tensor, num_reference: int, power: int) -> torch.Tensor:
        self.check_num_reference(num_reference)
        u = torch.as_tensor(u, dtype=torch.float64)
        # A law's own object would not take u = 0 or 1.
        counts = torch.arange(num_reference + 1, dtype=torch.float64)
        choose = _log_choose(num_reference, counts)
        law = (
            choose + torch.xlogy(counts, u[..., None]) + torch.xlogy(num_reference - counts, 1 - u[..., None])
        ).exp()
        return (law * self.estimate(counts, num_reference) ** power).sum(dim=-1)


def average_over_ties(table: torch.Tensor, below: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """The mean of `table[below + B]` over `B ~ Binomial(equal, 1/2)`."""
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
            f"`counts` has to hold whole numbers from 0 to num_reference={num_reference}, `ties` included, but holds "
            f"{counts.flatten()[:3].tolist()}, ... Pass references below as `counts` and those equal as `ties`."
        )
    return counts.long(), equal.long()
