"""
Pessimism: trusts rewards only as far as the policy supports them, so that a reward model is not over-trusted.

One strategy with two rules, chosen by `pool`: each is a small class below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from hf_itp.checks import check_choice, check_num_return_sequences, check_number, check_rewards
from hf_itp.errors import ArgumentError
from hf_itp.functional.normalization import NORMALIZATIONS, normalize_rewards
from hf_itp.functional.pessimism import (
    beta_for_effective_sample_size,
    check_beta,
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

# `advice` warns when at least this share of the pools is at one extreme.
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class Pessimism(Strategy):
    r"""
    Return a candidate with probability proportional to \\( \max(r - \lambda, 0) \\): linear in the reward above a
    normalizer \\( \lambda \\), zero below it. This law maximises the mean reward minus `beta` times the chi-squared
    divergence from the policy.

    *When to use*: With a learned reward model, which is wrong somewhere: as N grows best-of-n finds those errors,
    while pessimism keeps its quality. The default choice.

    *Cost*: N responses and N rewards per prompt; with `pool="fresh"` up to 2N + 1, drawn only as far as needed.

    *Paper*: InferenceTimePessimism of [Is Best-of-N the Best of Them?](https://huggingface.co/papers/2503.21878).
    `pool="shared"` proposes from the one pool, with replacement, until a candidate is accepted: its law is the solved
    weights. `pool="fresh"` is the paper's Algorithm 1: it solves the normalizer on the first N responses, proposes N
    further ones in order and, if none is accepted, returns one more as it comes.

    Args:
        beta (`float`, *optional*, defaults to 0.1):
            Regularization strength, in units of (normalized) reward. Near 0 this is best-of-n; far above the spread of
            the rewards it is plain sampling. No value fits every reward scale: 0.1 is the middle of the values tried
            in the paper's replications, on z-scored rewards. [`advice`] warns if it does not fit and suggests others.
        pool (`str`, *optional*, defaults to `"shared"`): `"shared"` or `"fresh"`.
        reward_bound (`float`, *optional*):
            Largest possible (normalized) reward, the paper's \\( R_{max} \\). Defaults to the highest reward of the
            (first) pool, and to 1 for quantiles. For `pool="fresh"` this default departs from the paper, where the
            bound is known.
        normalize (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"zscore"` or `"quantile"` within the (first) pool, which gives `beta` one meaning for every
            prompt and reward model. `reward_bound` and the reported normalizer are on the normalized scale.

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
        object.__setattr__(self, "beta", check_beta(self.beta))
        check_choice("pool", self.pool, tuple(_RULES))
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        if self.reward_bound is not None:
            remedy = "Set it to the largest reward the reward model can give, or leave it out."
            object.__setattr__(self, "reward_bound", check_number("reward_bound", self.reward_bound, remedy))

    @property
    def _rule(self) -> _SharedPool:
        return _RULES[self.pool](self.beta, self.reward_bound, self.normalize)

    def probabilities(self, rewards: Tensor) -> Tensor:
        """
        Return the exact law of the first returned index given the pool.

        With `pool="fresh"` the `P` rewards are read as a finished run: the first `(P - 1) // 2` are the first pool,
        the last is the fallback, those between are the proposals in order. `P = 2 * N + 1` is Algorithm 1.
        """
        return self._rule.probabilities(rewards)

    def select(
        self,
        rewards: Tensor,
        num_return_sequences: int = 1,
        generator: Generator | None = None,
        law: Tensor | None = None,
    ) -> Tensor:
        """
        Draw different indices to return; see [`Strategy.select`].

        With `pool="fresh"` and `k = num_return_sequences` the `P` rewards are read as a finished run: the first
        `(P - k) // 2` are the first pool, the last `k` are the fallbacks, those between are the proposals. Returns the
        first `k` accepted in order, then fallbacks in order.
        """
        return self._rule.select(rewards, num_return_sequences, generator, law)

    @property
    def takes_law(self) -> bool:
        return self.pool == "shared"

    def num_extra_candidates(self, num_candidates: int, num_return_sequences: int) -> int:
        return self._rule.num_extra_candidates(num_candidates, num_return_sequences)

    def decide(
        self,
        rewards: Tensor,
        num_candidates: int,
        num_return_sequences: int = 1,
        generator: Generator | None = None,
        law: Tensor | None = None,
    ) -> Tensor | None:
        """
        Return the indices to return for one prompt, or `None` if more candidates must be drawn first.

        With `pool="fresh"` candidates from `num_candidates` on are proposals, in order, and from `2 * num_candidates`
        on fallbacks. Returns the first `num_return_sequences` accepted; fallbacks fill up the rest.
        """
        return self._rule.decide(rewards, num_candidates, num_return_sequences, generator, law)

    def diagnostics(self, rewards: Tensor, law: Tensor | None = None) -> dict[str, Tensor]:
        """
        Return diagnostics of each pool `(..., N)`, the first pool with `pool="fresh"`: tensors of shape `(...)`.

        `normalizer` lambda, `bound` M, `acceptance_rate` of one proposal, `effective_sample_size` of the law, and
        `support_size`, the number of candidates of positive probability. With `pool="fresh"` the rate and the sizes
        are estimates for the proposals to come, and `no_acceptance_probability` is the chance of a fallback.
        """
        return self._rule.diagnostics(rewards, law)

    def selection_diagnostics(self, indices: Tensor, num_candidates: int) -> dict[str, Tensor]:
        """Return, with `pool="fresh"`, `fallbacks`: how many of the indices `(..., k)` were not accepted."""
        return self._rule.selection_diagnostics(indices, num_candidates)

    def advice(self, rewards: Tensor) -> str | None:
        """Return one sentence if `beta` makes this best-of-n, or plain sampling, on nearly all pools."""
        rewards = check_rewards(rewards)
        num_candidates = rewards.shape[-1]
        rewards = rewards.reshape(-1, num_candidates)
        rewards = rewards[rewards.amax(dim=-1) > rewards.amin(dim=-1)]
        if len(rewards) == 0:
            return None
        rewards = normalize_rewards(rewards, self.normalize)
        sizes = effective_sample_size(rejection_law(pessimism(rewards, self.beta)[0]))
        smallest = (rewards == rewards.amax(dim=-1, keepdim=True)).sum(dim=-1)  # best-of-n's own size, ties counted
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


@dataclass(frozen=True)
class _SharedPool(Strategy):
    """Propose from the one pool, with replacement, until a candidate is accepted."""

    name: ClassVar[str] = Pessimism.name

    beta: float
    reward_bound: float | None
    normalize: str

    def solve(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights `(..., N)`, normalizer `(...)` and bound `(...)` of a pool: steps 2 and 3 of the paper."""
        rewards = normalize_rewards(rewards, self.normalize)
        weights, normalizer = pessimism(rewards, self.beta)
        reward_bound = self.reward_bound
        if reward_bound is None and self.normalize == "quantile":
            reward_bound = 1.0
        return weights, normalizer, rejection_bound(rewards, weights, self.beta, reward_bound)

    def probabilities(self, rewards: Tensor) -> Tensor:
        weights, _, bound = self.solve(check_rewards(rewards))
        return rejection_law(weights, bound)

    def diagnostics(self, rewards: Tensor, law: Tensor | None = None) -> dict[str, Tensor]:
        weights, normalizer, bound = self.solve(check_rewards(rewards))
        return {
            "normalizer": normalizer,
            "bound": bound,
            "acceptance_rate": acceptance_probabilities(weights, bound).mean(dim=-1),
            "effective_sample_size": effective_sample_size(rejection_law(weights, bound) if law is None else law),
            "support_size": (weights > 0).sum(dim=-1),
        }


@dataclass(frozen=True)
class _FreshPool(_SharedPool):
    """Solve the weights on a first pool, then look at each fresh proposal once, in order: Algorithm 1."""

    def acceptance(self, first: Tensor, proposals: Tensor) -> Tensor:
        """Return acceptance probabilities of the proposals `(..., M)` under the first pool's weights: step 4."""
        if proposals.shape[-1] == 0:
            return proposals
        weights, _, bound = self.solve(first)
        pool = normalize_rewards(first, self.normalize)
        proposals = normalize_rewards(proposals, self.normalize, reference=first)
        return acceptance_probabilities(weights_beyond_pool(proposals, pool, weights, self.beta), bound)

    def probabilities(self, rewards: Tensor) -> Tensor:
        rewards = check_rewards(rewards)
        size = _first_pool_size(rewards.shape[-1], 1)
        law, fallback = first_accept_law(self.acceptance(rewards[..., :size], rewards[..., size:-1]))
        return torch.cat([torch.zeros_like(rewards[..., :size]), law, fallback.unsqueeze(-1)], dim=-1)

    def select(
        self,
        rewards: Tensor,
        num_return_sequences: int = 1,
        generator: Generator | None = None,
        law: Tensor | None = None,
    ) -> Tensor:
        rewards = check_rewards(rewards)
        num_rewards = rewards.shape[-1]
        num_return_sequences = check_num_return_sequences(num_return_sequences, num_rewards)
        size = _first_pool_size(num_rewards, num_return_sequences)
        proposals = rewards[..., size : num_rewards - num_return_sequences]
        accepted = _uniforms(proposals, generator) < self.acceptance(rewards[..., :size], proposals)
        # Accepted proposals and then fallbacks, each in the order drawn: rejected ones sort behind them all.
        places = torch.arange(size, num_rewards, device=rewards.device)  # (P - size,)
        fallbacks = accepted.new_ones((*accepted.shape[:-1], num_return_sequences))
        keys = torch.where(torch.cat([accepted, fallbacks], dim=-1), places, places + num_rewards)
        return keys.sort(dim=-1).values[..., :num_return_sequences]

    def num_extra_candidates(self, num_candidates: int, num_return_sequences: int) -> int:
        return num_candidates + num_return_sequences

    def decide(
        self,
        rewards: Tensor,
        num_candidates: int,
        num_return_sequences: int = 1,
        generator: Generator | None = None,
        law: Tensor | None = None,
    ) -> Tensor | None:
        rewards = check_rewards(rewards)
        if rewards.dim() != 1 or len(rewards) < num_candidates:
            raise ArgumentError(
                f"`rewards` must hold the {num_candidates} rewards of the first pool, got shape "
                f"{tuple(rewards.shape)}. Score `num_candidates` responses first."
            )
        check_num_return_sequences(num_return_sequences, num_candidates)
        first, proposals = rewards[:num_candidates], rewards[num_candidates : 2 * num_candidates]
        # One number for every proposal to come, so that a call with more of them decides the same.
        uniforms = _uniforms(first, generator)[: len(proposals)]
        accepted = (uniforms < self.acceptance(first, proposals)).nonzero().squeeze(-1) + num_candidates
        drawn = torch.arange(len(rewards), device=rewards.device)
        indices = torch.cat([accepted, drawn[2 * num_candidates :]])[:num_return_sequences]
        return indices if len(indices) == num_return_sequences else None

    def diagnostics(self, rewards: Tensor, law: Tensor | None = None) -> dict[str, Tensor]:
        found = super().diagnostics(rewards, law)
        none = no_acceptance_probability(found["acceptance_rate"], rewards.shape[-1])
        return {**found, "no_acceptance_probability": none}

    def selection_diagnostics(self, indices: Tensor, num_candidates: int) -> dict[str, Tensor]:
        return {"fallbacks": (indices >= 2 * num_candidates).sum(dim=-1)}


_RULES = {"shared": _SharedPool, "fresh": _FreshPool}


def _first_pool_size(num_rewards: int, num_fallbacks: int) -> int:
    """Return the size of the first pool in a finished run: at least one if any reward is left for it."""
    left = num_rewards - num_fallbacks
    return max(left // 2, min(left, 1))


def _uniforms(like: Tensor, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, dtype=torch.float64, device=device, generator=generator).to(like.device)
