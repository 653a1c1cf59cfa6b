"""
Pessimism: rewards count only as far as the policy itself supports them, so that a reward model is not over-trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_itp.checks import (
    check_choice,
    check_num_return_sequences,
    check_number,
    check_positive,
    check_rewards,
)
from hf_itp.errors import ArgumentError
from hf_itp.functional.normalization import NORMALIZATIONS, normalize_rewards
from hf_itp.functional.pessimism import (
    BETA_REMEDY,
    beta_for_effective_sample_size,
    pessimism,
    weights_beyond_pool,
)
from hf_itp.functional.rejection import (
    acceptance_probabilities,
    first_accept_law,
    no_acceptance_probability,
    rejection_bound,
    rejection_law,
)
from hf_itp.functional.selection import effective_sample_size
from hf_itp.strategies.base import Strategy

# `advice` speaks up when at least this part of the pools is at one extreme.
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class Pessimism(Strategy):
    r"""
    Returns a candidate with probability proportional to \\( \max(r - \lambda, 0) \\): linear in the reward above a
    normalizer \\( \lambda \\), zero below it. This maximises the mean reward less `beta` times the chi-squared
    distance from the policy.

    *When to use*: With a learned reward model, which is wrong somewhere: as N grows best-of-n finds those errors,
    while pessimism keeps its quality. The default choice.

    *Cost*: N responses and N rewards per prompt; with `pool="fresh"` up to 2N + 1, drawn only as far as needed.

    *Paper*: InferenceTimePessimism of [Is Best-of-N the Best of Them?](https://huggingface.co/papers/2503.21878).
    `pool="shared"` proposes from the one pool, with replacement, until a candidate is accepted: the law is the solved
    weights themselves. `pool="fresh"` is the paper's Algorithm 1: the normalizer from the first N responses, N further
    ones proposed in order, and if none is accepted one more returned as it comes.

    Args:
        beta (`float`, *optional*, defaults to 0.1):
            Regularization strength, in units of (normalized) reward. Near 0 this is best-of-n, far above the spread of
            the rewards plain sampling. No value fits every reward scale: 0.1 is the middle of the values tried in the
            paper's replications, on z-scored rewards, and [`advice`] warns when it does not fit and says what would.
        pool (`str`, *optional*, defaults to `"shared"`): `"shared"` or `"fresh"`.
        reward_bound (`float`, *optional*):
            Largest (normalized) reward there can be, the paper's \\( R_{max} \\). Without it the highest reward of the
            (first) pool serves, and 1 for quantiles; for `pool="fresh"` that departs from the paper, which takes the
            bound as known.
        normalize (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"zscore"` or `"quantile"` within the (first) pool: gives `beta` one meaning for every prompt and
            reward model. `reward_bound` and the reported normalizer are on the normalized scale.

    Example: `model.generate(**inputs, strategy="pessimism", beta=0.1, reward_model=reward_model, num_candidates=32)`

    ```python
    >>> import torch
    >>> Pessimism(beta=0.1).probabilities(torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3], dtype=torch.float64))
    tensor([0.7000, 0.3000, 0.0000, 0.0000, 0.0000], dtype=torch.float64)

    ```
    """

    name: ClassVar[str] = "pessimism"

    beta: float = 0.1
    pool: str = "shared"
    reward_bound: float | None = None
    normalize: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_positive("beta", self.beta, BETA_REMEDY))
        check_choice("pool", self.pool, ("shared", "fresh"))
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        if self.reward_bound is not None:
            remedy = "Set it to the largest reward the reward model can give, or leave it out."
            object.__setattr__(self, "reward_bound", check_number("reward_bound", self.reward_bound, remedy))

    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        """
        Exact law of the first returned index given the pool.

        With `pool="fresh"` the `P` rewards are read as a finished run: the first `(P - 1) // 2` are the first pool,
        the last is the fallback, and those between are the proposals in order: `P = 2 * N + 1` is Algorithm 1.
        """
        rewards = check_rewards(rewards)
        if self.pool == "fresh":
            size = _first_pool_size(rewards.shape[-1], 1)
            law, fallback = first_accept_law(self._acceptance(rewards[..., :size], rewards[..., size:-1]))
            return torch.cat([torch.zeros_like(rewards[..., :size]), law, fallback.unsqueeze(-1)], dim=-1)
        weights, _, bound = self._solve(rewards)
        return rejection_law(weights, bound)

    def select(
        self,
        rewards: torch.Tensor,
        num_return_sequences: int = 1,
        generator: torch.Generator | None = None,
        law: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Draws the indices to return, all different; see [`Strategy.select`].

        With `pool="fresh"` and `k = num_return_sequences` the `P` rewards are read as a finished run: the first
        `(P - k) // 2` are the first pool, the last `k` are the fallbacks, and those between are the proposals. The
        first `k` accepted are returned in order, then fallbacks in order.
        """
        if self.pool == "shared":
            return super().select(rewards, num_return_sequences, generator, law)
        rewards = check_rewards(rewards)
        num_rewards = rewards.shape[-1]
        num_return_sequences = check_num_return_sequences(num_return_sequences, num_rewards)
        size = _first_pool_size(num_rewards, num_return_sequences)
        proposals = rewards[..., size : num_rewards - num_return_sequences]
        accepted = _uniforms(proposals, generator) < self._acceptance(rewards[..., :size], proposals)
        # Accepted proposals and then fallbacks, each in the order drawn: what was rejected sorts behind them all.
        places = torch.arange(size, num_rewards, device=rewards.device)  # (P - size,)
        fallbacks = accepted.new_ones((*accepted.shape[:-1], num_return_sequences))
        keys = torch.where(torch.cat([accepted, fallbacks], dim=-1), places, places + num_rewards)
        return keys.sort(dim=-1).values[..., :num_return_sequences]

    @property
    def takes_law(self) -> bool:
        return self.pool == "shared"

    def num_extra_candidates(self, num_candidates: int, num_return_sequences: int) -> int:
        return num_candidates + num_return_sequences if self.pool == "fresh" else 0

    def decide(
        self,
        rewards: torch.Tensor,
        num_candidates: int,
        num_return_sequences: int = 1,
        generator: torch.Generator | None = None,
        law: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """
        The indices to return for one prompt, or `None` while more candidates have to be drawn first.

        With `pool="fresh"`: candidates from `num_candidates` on are proposals, in order, and from `2 * num_candidates`
        on fallbacks. The first `num_return_sequences` accepted are returned; fallbacks fill up what is missing.
        """
        if self.pool == "shared":
            return super().decide(rewards, num_candidates, num_return_sequences, generator, law)
        rewards = check_rewards(rewards)
        if rewards.dim() != 1 or len(rewards) < num_candidates:
            raise ArgumentError(
                f"`rewards` has to hold the {num_candidates} rewards of the first pool, but has shape "
                f"{tuple(rewards.shape)}. Score `num_candidates` responses first."
            )
        check_num_return_sequences(num_return_sequences, num_candidates)
        first, proposals = rewards[:num_candidates], rewards[num_candidates : 2 * num_candidates]
        # One number for every proposal there will be, so that a call with more of them decides the same.
        uniforms = _uniforms(first, generator)[: len(proposals)]
        accepted = (uniforms < self._acceptance(first, proposals)).nonzero().squeeze(-1) + num_candidates
        drawn = torch.arange(len(rewards), device=rewards.device)
        indices = torch.cat([accepted, drawn[2 * num_candidates :]])[:num_return_sequences]
        return indices if len(indices) == num_return_sequences else None

    def diagnostics(self, rewards: torch.Tensor, law: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """
        What the rule found in each pool `(..., N)`, the first pool with `pool="fresh"`: tensors of shape `(...)`.

        `normalizer` lambda, `bound` M, `acceptance_rate` of one proposal, `effective_sample_size` of the law, and
        `support_size`, the number of candidates with any probability. With `pool="fresh"` the rate and the sizes are
        estimates for proposals to come, and `no_acceptance_probability` says how likely a fallback is.
        """
        rewards = check_rewards(rewards)
        weights, normalizer, bound = self._solve(rewards)
        acceptance_rate = acceptance_probabilities(weights, bound).mean(dim=-1)
        found = {
            "normalizer": normalizer,
            "bound": bound,
            "acceptance_rate": acceptance_rate,
            "effective_sample_size": effective_sample_size(rejection_law(weights, bound) if law is None else law),
            "support_size": (weights > 0).sum(dim=-1),
        }
        if self.pool == "fresh":
            found["no_acceptance_probability"] = no_acceptance_probability(acceptance_rate, rewards.shape[-1])
        return found

    def selection_diagnostics(self, indices: torch.Tensor, num_candidates: int) -> dict[str, torch.Tensor]:
        """`fallbacks`: how many of the indices `(..., k)` from [`decide`] were returned without being accepted."""
        if self.pool == "shared":
            return {}
        return {"fallbacks": (indices >= 2 * num_candidates).sum(dim=-1)}

    def advice(self, rewards: torch.Tensor) -> str | None:
        """One sentence when `beta` makes this best-of-n, or plain sampling, on nearly all pools; else `None`."""
        rewards = check_rewards(rewards)
        num_candidates = rewards.shape[-1]
        rewards = rewards.reshape(-1, num_candidates)
        rewards = rewards[rewards.amax(dim=-1) > rewards.amin(dim=-1)]
        if len(rewards) == 0:
            return None
        rewards = normalize_rewards(rewards, self.normalize)
        sizes = effective_sample_size(rejection_law(pessimism(rewards, self.beta)[0]))
        smallest = (rewards == rewards.amax(dim=-1, keepdim=True)).sum(dim=-1)  # of best-of-n itself, ties counted
        # A twentieth of the way from one extreme to the other, and never more than 1.05 times the smallest.
        near_best = sizes < torch.minimum(1.05 * smallest, 0.95 * smallest + 0.05 * num_candidates)
        near_plain = sizes > 0.05 * smallest + 0.95 * num_candidates
        if near_best.double().mean() >= _NEARLY_ALL:
            extreme, other = "small", "best_of_n"
        elif near_plain.double().mean() >= _NEARLY_ALL:
            extreme, other = "large", "plain sampling"
        else:
            return None
        lowest, highest = (
            beta_for_effective_sample_size(rewards, smallest.double() ** (1 - part) * num_candidates**part).median()
            for part in (0.25, 0.75)
        )
        return (
            f"`beta` ({self.beta:g}) is so {extreme} for these rewards that pessimism is nearly {other}: the "
            f"effective sample size is {sizes.median():.2f} of {num_candidates} candidates (median of {len(sizes)} "
            f"pools). Choose a beta between {lowest:.2g} and {highest:.2g}."
        )

    def _solve(self, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Steps 2 and 3: weights `(..., N)`, normalizer `(...)` and bound `(...)` of a pool."""
        rewards = normalize_rewards(rewards, self.normalize)
        weights, normalizer = pessimism(rewards, self.beta)
        reward_bound = self.reward_bound
        if reward_bound is None and self.normalize == "quantile":
            reward_bound = 1.0
        return weights, normalizer, rejection_bound(rewards, weights, self.beta, reward_bound)

    def _acceptance(self, first: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
        """Step 4: acceptance probabilities of the proposals `(..., M)` under the weights solved on the first pool."""
        if proposals.shape[-1] == 0:
            return proposals
        weights, _, bound = self._solve(first)
        pool = normalize_rewards(first, self.normalize)
        proposals = normalize_rewards(proposals, self.normalize, reference=first)
        return acceptance_probabilities(weights_beyond_pool(proposals, pool, weights, self.beta), bound)


def _first_pool_size(num_rewards: int, num_fallbacks: int) -> int:
    """How many of the rewards of a finished run are the first pool: at least one where anything is left for it."""
    left = num_rewards - num_fallbacks
    return max(left // 2, min(left, 1))


def _uniforms(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, dtype=torch.float64, device=device, generator=generator).to(like.device)
