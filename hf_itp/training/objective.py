r"""
What CTRL maximizes, settled from the arguments: \\( E_\pi[\Phi(C)] - \beta KL(\pi \| \pi_{ref}) \\), over `beta`.

In nats the optimum's log-ratio to the reference policy is the reward itself up to a constant, whatever the transform's
own scale: that of `exponential(10)` is 22,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_itp.errors import ArgumentError
from hf_itp.functional.tradeoff import AlignmentTradeoff, alignment_tradeoff, beta_for_kl
from hf_itp.functional.transforms import Exponential, Identity, Transform, get_transform

DEFAULT_KL = 0.5
DEPTH = 6.0
"""
Nats by which the reward of the worst response is below that of the best at most. The optimum leaves responses further
down less than e^-6 of the others' share. With the penalties of `exponential(-10)` in full, 87 nats at a KL of 0.5, a
policy gives up the first tokens of good responses along with those of bad ones before it can tell them apart.
"""
# Which exponentials "auto" tries, as far as the references carry: from t = sqrt(K) on the noise of an estimate is more
# than half of its value.
_AUTO_T = range(1, 21)


@dataclass
class ObjectiveArguments:
    """
    The arguments of every way to train: what for, by which transform, how far from the reference policy.

    Args:
        strategy (`str`, *optional*, defaults to `"best_of_n"`):
            What the policy will be decoded with; written beside it for `generate(strategy="auto")`. `"none"` for plain
            sampling.
        num_candidates (`int`, *optional*, defaults to 4):
            The N it will be decoded with.
        strategy_fields (`dict`, *optional*):
            Further fields of the strategy, such as `beta` of pessimism.
        transform (`str`, *optional*, defaults to `"auto"`):
            Of the calibrated reward: `identity`, `log`, `exponential`, `best_of_n_optimal`, `worst_of_n_optimal`, or
            `auto`: the exponential with the best win rate under `strategy` at the KL aimed at.
        t (`float`, *optional*):
            Of `exponential`. 5 is near the optimum for best-of-2, 10 for best-of-4.
        target_kl (`float`, *optional*, defaults to 0.5):
            KL of the optimum to the reference policy in nats, from which `beta` follows.
        beta (`float`, *optional*):
            KL strength in units of the transform, instead of `target_kl`.
        num_reference (`int`, *optional*, defaults to 100):
            Reference responses per prompt, where no calibrator is given.
    """

    references_are_trained_on: ClassVar[bool] = False
    """Whether a response is calibrated among the references it is one of, of which K - 1 others are left then."""

    strategy: str = field(
        default="best_of_n", metadata={"help": "What the policy will be decoded with; none is plain."}
    )
    num_candidates: int = field(default=4, metadata={"help": "The N it will be decoded with."})
    strategy_fields: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further fields of the strategy, as JSON."}
    )
    transform: str = field(
        default="auto",
        metadata={"help": "identity, log, exponential, best_of_n_optimal, worst_of_n_optimal or auto."},
    )
    t: float | None = field(default=None, metadata={"help": "Of the exponential transform."})
    target_kl: float | None = field(
        default=None, metadata={"help": "KL of the optimum to the reference policy, in nats; 0.5 if beta is absent."}
    )
    beta: float | None = field(
        default=None, metadata={"help": "KL strength in units of the transform, instead of target_kl."}
    )
    num_reference: int = field(default=100, metadata={"help": "Reference responses per prompt."})


@dataclass(frozen=True)
class CTRLObjective:
    """
    A transform and its KL strength.

    Args:
        transform ([`~functional.transforms.Transform`]): Of the calibrated reward.
        beta (`float`): In units of the transform.
    """

    transform: Transform
    beta: float

    @classmethod
    def from_arguments(cls, args: ObjectiveArguments, num_reference: int | None = None) -> CTRLObjective:
        """
        Args:
            num_reference (`int`, *optional*): `K`, the references of a prompt at hand; `args.num_reference` without
                any.

        Raises:
            `ArgumentError`: If the arguments contradict each other, or `K` is too small for the transform.
        """
        if args.beta is not None and args.target_kl is not None:
            raise ArgumentError(
                f"Only one of `beta` and `target_kl` can be given, but they are {args.beta} and {args.target_kl}: "
                "each follows from the other. Drop one of them."
            )
        kl = DEFAULT_KL if args.target_kl is None else args.target_kl
        count = args.num_reference if num_reference is None else num_reference
        count -= args.references_are_trained_on
        transform = _transform(args, kl, count)
        transform.check_num_reference(count)
        beta = beta_for_kl(transform, kl) if args.beta is None else args.beta
        objective = cls(transform.at_beta(beta), beta)
        objective.expected()  # refuses a beta that is none
        return objective

    def rewards(self, below: torch.Tensor, equal: torch.Tensor, num_reference: int) -> torch.Tensor:
        """
        The reward in nats of responses of which it is known how many references stand below and at them, at most
        `DEPTH` below that of a response that beats all.
        """
        estimates = self.transform.estimate(below, num_reference, ties=equal) / self.beta
        best = float(self.transform(torch.ones(1, dtype=torch.float64))) / self.beta
        return estimates.clamp(min=best - DEPTH)

    def log_partition(self) -> float:
        """Of the optimum, for rewards without ties."""
        return self.transform.log_partition(self.beta)

    def expected(self) -> AlignmentTradeoff:
        """Where training arrives if it finds the optimum, for rewards without ties."""
        return alignment_tradeoff(self.transform, self.beta)


def _transform(args: ObjectiveArguments, kl: float, num_reference: int) -> Transform:
    if args.transform == "auto":
        if args.t is not None:
            raise ArgumentError(
                f"`t` belongs to transform='exponential', but `transform` is 'auto' and t is {args.t}. Pass "
                "transform='exponential', or drop `t`."
            )
        return _best_exponential(args, kl, num_reference)
    fields: dict[str, Any] = {}
    if args.transform == "exponential":
        if args.t is None:
            raise ArgumentError(
                "`t` has to be given with transform='exponential', but is missing. Pass t=5 or t=10 for best-of-n, "
                "t=-5 or t=-10 for worst-of-n."
            )
        fields["t"] = args.t
    elif args.t is not None:
        raise ArgumentError(f"`t` belongs to transform='exponential', but `transform` is {args.transform!r}. Drop it.")
    if args.transform in ("best_of_n_optimal", "worst_of_n_optimal"):
        fields |= {"n": args.num_candidates, "beta": args.beta or 1.0}
    return get_transform(args.transform, **fields)


def _best_exponential(args: ObjectiveArguments, kl: float, num_reference: int) -> Transform:
    strategy, n = args.strategy, args.num_candidates
    if args.beta is not None:
        raise ArgumentError(
            f"`beta` is in units of the transform, so it cannot be given with transform='auto', but is {args.beta}. "
            "Pass `target_kl` instead, or name a transform."
        )
    if strategy == "none" or n == 1:
        return Identity()
    if strategy == "pessimism" and isinstance(args.strategy_fields, dict) and "beta" in args.strategy_fields:
        # On calibrated rewards pessimism has the win rate of best-of-n at beta = 9 / (2 (n + 1)^2).
        n = max(1, round(3 / math.sqrt(2 * args.strategy_fields["beta"]) - 1))
    elif strategy not in ("best_of_n", "worst_of_n", "pessimism"):
        raise ArgumentError(
            f"transform='auto' knows the strategies best_of_n, worst_of_n, pessimism and none, but `strategy` is "
            f"{strategy!r}. Name a transform, such as transform='exponential', t=5."
        )

    def rate(transform: Transform) -> float:
        tradeoff = alignment_tradeoff(transform, beta_for_kl(transform, kl))
        return tradeoff.worst_of_n_win_rate(n) if strategy == "worst_of_n" else tradeoff.best_of_n_win_rate(n)

    sign = -1 if strategy == "worst_of_n" else 1
    candidates = [Exponential(float(sign * t)) for t in _AUTO_T if t * t <= num_reference and 3 * t <= num_reference]
    return max([Identity(), *candidates], key=rate)
