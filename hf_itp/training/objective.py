r"""
CTRL's objective, made from the arguments: \\( E_\pi[\Phi(C)] - \beta KL(\pi \| \pi_{ref}) \\), divided by `beta`.

The reward is then in nats: up to a constant, it is the optimum's log-ratio to the reference policy, whatever the scale
of the transform (22,000 for `exponential(10)`).
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
Rewards are clipped to at most 6 nats below the best. The optimum leaves responses further down less than e^-6 of the
others' share. With the unclipped penalties of `exponential(-10)`, 87 nats at a KL of 0.5, a policy gives up the first
tokens of good responses along with those of bad ones before it can tell them apart.
"""
# Exponentials that "auto" tries, as far as the references allow: from t = sqrt(K) on, an estimate's noise exceeds half
# of its value.
_AUTO_T = range(1, 21)


@dataclass
class ObjectiveArguments:
    """
    Arguments of every trainer: the strategy, the transform, and the distance from the reference policy.

    Args:
        strategy (`str`, *optional*, defaults to `"best_of_n"`):
            Strategy the policy will be decoded with, saved with it for `generate(strategy="auto")`. `"none"` is plain
            sampling.
        num_candidates (`int`, *optional*, defaults to 4):
            N the policy will be decoded with.
        strategy_fields (`dict`, *optional*):
            Further fields of the strategy, such as `beta` of pessimism.
        transform (`str`, *optional*, defaults to `"auto"`):
            Transform of the calibrated reward: `identity`, `log`, `exponential`, `best_of_n_optimal`,
            `worst_of_n_optimal`, or `auto`, the exponential with the best win rate under `strategy` at `target_kl`.
        t (`float`, *optional*):
            Parameter of `exponential`. 5 is near the optimum for best-of-2, 10 for best-of-4.
        target_kl (`float`, *optional*, defaults to 0.5):
            KL divergence of the optimum from the reference policy, in nats. Determines `beta`.
        beta (`float`, *optional*):
            KL strength in units of the transform, instead of `target_kl`.
        num_reference (`int`, *optional*, defaults to 100):
            Reference responses per prompt, if no calibrator is given.
        reward_view (`str`, *optional*, defaults to `"full"`):
            What the reward reads of a response: `full`, or `final`, without a reasoning model's thinking. A response
            cut off while thinking then has no reward.
    """

    references_are_trained_on: ClassVar[bool] = False
    """Whether the responses are references themselves, each calibrated among the K - 1 others."""

    strategy: str = field(
        default="best_of_n", metadata={"help": "Strategy the policy will be decoded with; none is plain sampling."}
    )
    num_candidates: int = field(default=4, metadata={"help": "N the policy will be decoded with."})
    strategy_fields: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further fields of the strategy, as JSON."}
    )
    transform: str = field(
        default="auto",
        metadata={"help": "identity, log, exponential, best_of_n_optimal, worst_of_n_optimal or auto."},
    )
    t: float | None = field(default=None, metadata={"help": "Parameter of the exponential transform."})
    target_kl: float | None = field(
        default=None,
        metadata={"help": "KL of the optimum from the reference policy, in nats. Default: 0.5, without beta."},
    )
    beta: float | None = field(
        default=None, metadata={"help": "KL strength in units of the transform, instead of target_kl."}
    )
    num_reference: int = field(default=100, metadata={"help": "Reference responses per prompt."})
    reward_view: str = field(
        default="full",
        metadata={
            "help": "What the reward reads of a response: full, or final, without a reasoning model's thinking."
        },
    )


@dataclass(frozen=True)
class CTRLObjective:
    """
    Pair a transform with its KL strength.

    Args:
        transform ([`~functional.transforms.Transform`]): Transform of the calibrated reward.
        beta (`float`): KL strength in units of the transform.
    """

    transform: Transform
    beta: float

    @classmethod
    def from_arguments(cls, args: ObjectiveArguments, num_reference: int | None = None) -> CTRLObjective:
        """
        Make the objective that the arguments describe.

        Args:
            num_reference (`int`, *optional*): `K`, the references per prompt. Defaults to `args.num_reference`.

        Raises:
            `ArgumentError`: If the arguments contradict each other, or `K` is too small for the transform.
        """
        if args.beta is not None and args.target_kl is not None:
            raise ArgumentError(
                f"One of `beta` and `target_kl` must be left out, got {args.beta} and {args.target_kl}: each follows "
                "from the other. Drop one of them."
            )
        kl = DEFAULT_KL if args.target_kl is None else args.target_kl
        count = args.num_reference if num_reference is None else num_reference
        count -= args.references_are_trained_on
        transform = _transform(args, kl, count)
        transform.check_num_reference(count)
        beta = beta_for_kl(transform, kl) if args.beta is None else args.beta
        objective = cls(transform.at_beta(beta), beta)
        objective.expected()  # refuses an invalid beta
        return objective

    def rewards(self, below: torch.Tensor, equal: torch.Tensor, num_reference: int | torch.Tensor) -> torch.Tensor:
        """
        Return rewards in nats, given how many reference rewards are lower and equal, out of how many. They are clipped
        to at most `DEPTH` below the reward of a response that beats all.
        """
        if isinstance(num_reference, torch.Tensor):
            # Prompts with references without a reward have fewer than others.
            found = torch.empty(below.shape, dtype=torch.float64)
            for count in num_reference.unique().tolist():
                own = num_reference == count
                found[own] = self.rewards(below[own], equal[own], int(count))
            return found
        estimates = self.transform.estimate(below, num_reference, ties=equal) / self.beta
        best = float(self.transform(torch.ones(1, dtype=torch.float64))) / self.beta
        return estimates.clamp(min=best - DEPTH)

    def check_references(self, fewest: int) -> None:
        """
        Check that the prompt with fewest reference rewards has enough of them.

        Raises:
            `ArgumentError`: If it has not.
        """
        try:
            self.transform.check_num_reference(fewest)
        except ArgumentError as error:
            raise ArgumentError(f"Of a prompt's references only {fewest} have a reward. {error}") from error

    def log_partition(self) -> float:
        """Return the log partition function of the optimum, for rewards without ties."""
        return self.transform.log_partition(self.beta)

    def expected(self) -> AlignmentTradeoff:
        """Return KL and win rates of the optimum, for rewards without ties."""
        return alignment_tradeoff(self.transform, self.beta)


def _transform(args: ObjectiveArguments, kl: float, num_reference: int) -> Transform:
    if args.transform == "auto":
        if args.t is not None:
            raise ArgumentError(
                f"`t` must come with transform='exponential', got t={args.t} and transform='auto'. Pass "
                "transform='exponential', or drop `t`."
            )
        return _best_exponential(args, kl, num_reference)
    fields: dict[str, Any] = {}
    if args.transform == "exponential":
        if args.t is None:
            raise ArgumentError(
                "`t` must be given with transform='exponential', got none. Pass t=5 or t=10 for best-of-n, t=-5 or "
                "t=-10 for worst-of-n."
            )
        fields["t"] = args.t
    elif args.t is not None:
        raise ArgumentError(
            f"`t` must come with transform='exponential', got t={args.t} and transform={args.transform!r}. Drop `t`."
        )
    if args.transform in ("best_of_n_optimal", "worst_of_n_optimal"):
        fields |= {"n": args.num_candidates, "beta": args.beta or 1.0}
    return get_transform(args.transform, **fields)


def _best_exponential(args: ObjectiveArguments, kl: float, num_reference: int) -> Transform:
    strategy, n = args.strategy, args.num_candidates
    if args.beta is not None:
        raise ArgumentError(
            f"`beta` must come with a named transform, in whose units it is, got beta={args.beta} and "
            "transform='auto'. Pass `target_kl` instead, or name a transform."
        )
    if strategy == "none" or n == 1:
        return Identity()
    beta = args.strategy_fields.get("beta") if isinstance(args.strategy_fields, dict) else None
    if strategy == "pessimism" and beta is not None:
        # On calibrated rewards pessimism has the win rate of best-of-n at beta = 9 / (2 (n + 1)^2).
        n = max(1, round(3 / math.sqrt(2 * beta) - 1))
    elif strategy not in ("best_of_n", "worst_of_n", "pessimism"):
        raise ArgumentError(
            f"`strategy` must be best_of_n, worst_of_n, pessimism or none with transform='auto', got {strategy!r}. "
            "Name a transform, e.g. transform='exponential', t=5."
        )

    def rate(transform: Transform) -> float:
        tradeoff = alignment_tradeoff(transform, beta_for_kl(transform, kl))
        return tradeoff.worst_of_n_win_rate(n) if strategy == "worst_of_n" else tradeoff.best_of_n_win_rate(n)

    sign = -1 if strategy == "worst_of_n" else 1
    candidates = [Exponential(float(sign * t)) for t in _AUTO_T if t * t <= num_reference and 3 * t <= num_reference]
    return max([Identity(), *candidates], key=rate)
