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

# Without `beta`: 0.2 standard deviations of the pool. docs/choosing_beta.md has what that gives on five real pools.
_DEFAULT_BETA, _DEFAULT_SCALE = 0.2, "zscore"


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
        beta (`float`, *optional*):
            Regularization strength, in units of (normalized) reward. Near 0 this is best-of-n; far above the spread of
            the rewards it is plain sampling. By default 0.2 with rewards in standard deviations of the pool, which
            fits every reward scale. A `beta` that is given is the paper's, in units of the raw reward, unless
            `normalize` says otherwise. [`advice`] says if it does not fit and suggests others.
        pool (`str`, *optional*, defaults to `"shared"`): `"shared"` or `"fresh"`.
        reward_bound (`float`, *optional*):
            Largest possible (normalized) reward, the paper's \\( R_{max} \\). Defaults to the highest reward of the
            (first) pool, and to 1 for quantiles. For `pool="fresh"` this default departs from the paper, where the
            bound is known. Needs `beta` or `normalize` beside it, which say on what scale it is.
        normalize (`str`, *optional*):
            `"none"`, `"zscore"` or `"quantile"` within the (first) pool: the scale of `beta`, `reward_bound` and the
            reported normalizer. Defaults to `"none"` beside a `beta` and to `"zscore"` without one. `"zscore"` may
            stand without `beta`; the others need one.

    The fields of an object are what runs: `Pessimism()` shows `beta=0.2` and `normalize="zscore"`.

    Raises:
        `ValueError`: If a field breaks its rule, or `normalize` or `reward_bound` comes without the `beta` it needs.

    Example: `model.generate(**inputs, strategy="pessimism", beta=0.1, reward_model=reward_model, num_candidates=32)`

    ```python
    >>> import torch
    >>> Pessimism(beta=0.1).probabilities(torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3], dtype=torch.float64))
    tensor([0.7000, 0.3000, 0.0000, 0.0000, 0.0000], dtype=torch.float64)
    >>> Pessimism()
    Pessimism(beta=0.2, pool='shared', reward_bound=None, normalize='zscore')

    ```
    """

    name: ClassVar[str] = "pessimism"

    beta: float | None = None
    pool: str = "shared"
    reward_bound: float | None = None
    normalize: str | None = None

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, tuple(_RULES))
        if self.normalize is not None:
            check_choice("normalize", self.normalize, NORMALIZATIONS)
        if self.reward_bound is not None:
            remedy = "Set it to the largest reward the reward model can give, or leave it out."
            object.__setattr__(self, "reward_bound", check_number("reward_bound", self.reward_bound, remedy))
        beta, normalize = self._filled_in()
        object.__setattr__(self, "beta", check_beta(beta))
        object.__setattr__(self, "normalize", normalize)

    def _filled_in(self) -> tuple[float, str]:
        """Return `beta` and `normalize` as they run: what is left out depends on what is given."""
        if self.beta is not None:
            return self.beta, self.normalize or "none"
        if self.normalize not in (None, _DEFAULT_SCALE):
            raise ArgumentError(
                f"`beta` must be given with normalize={self.normalize!r}, got None: the default, {_DEFAULT_BETA}, "
                "counts standard deviations. Pass beta=..., or leave `normalize` out."
            )
        if self.normalize is None and self.reward_bound is not None:
            raise ArgumentError(
                "`beta` must be given with `reward_bound`, got None: without it rewards count in standard deviations "
                f"of the pool, where {self.reward_bound:g} means something else. Pass beta=... in units of the "
                f"reward, or normalize={_DEFAULT_SCALE!r} if the bound is in standard deviations."
            )
        return _DEFAULT_BETA, _DEFAULT_SCALE

    @property
    def _rule(self) -> _SharedPool:
        beta, normalize = self._filled_in()
        return _RULES[self.pool](beta, self.reward_bound, normalize)

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
        """
        Return one sentence if `beta` makes this best-of-n, or plain sampling, on at least half of the pools.

        Pools of equal rewards do not count, and the default gets no advice. The sentence names a range of betas: the
        middle half of the way from one extreme to the other, at the median of the pools.
        """
        rewards = check_rewards(rewards)
        beta, normalize = self._filled_in()
        num_candidates = rewards.shape[-1]
        rewards = rewards.reshape(-1, num_candidates)
        rewards = rewards[rewards.amax(dim=-1) > rewards.amin(dim=-1)]
        if len(rewards) == 0 or (beta, normalize) == (_DEFAULT_BETA, _DEFAULT_SCALE):
            return None
        rewards = normalize_rewards(rewards, normalize)
        sizes = effective_sample_size(rejection_law(pessimism(rewards, beta)[0]))
        smallest = (rewards == rewards.amax(dim=-1, keepdim=True)).sum(dim=-1)  # best-of-n's own size, ties counted
        # A twentieth of the way from one extreme to the other, and never more than 1.05 times the smallest.
        near_best = sizes < torch.minimum(1.05 * smallest, 0.95 * smallest + 0.05 * num_candidates)
        near_plain = sizes > 0.05 * smallest + 0.95 * num_candidates
        if 2 * near_best.sum() >= len(rewards):
            extreme, other, pools = "small", "best_of_n", near_best
        elif 2 * near_plain.sum() >= len(rewards):
            extreme, other, pools = "large", "plain sampling", near_plain
        else:
            return None
        low, high = (
            beta_for_effective_sample_size(rewards, smallest.double() ** (1 - part) * num_candidates**part)
            for part in (0.25, 0.75)
        )
        # Of an even number the upper middle below and the lower middle above: then neither end is extreme on half.
        lowest, highest = -(-low).median(), high.median()
        remedy = f"Choose a beta between {lowest:.2g} and {highest:.2g}."
        if lowest >= highest:
            remedy = "The spreads of these pools differ too much for one beta: leave it out."
        ties = smallest[pools].median()
        tied = f", best_of_n's own being {ties}.00, because candidates tie for the best" if ties > 1 else ""
        without = "`beta`" if normalize in ("none", _DEFAULT_SCALE) else "`beta` and `normalize`"
        return (
            f"`beta` ({beta:g}) is so {extreme} for these rewards that pessimism is nearly {other} on {pools.sum()} "
            f"of {len(rewards)} pools: the effective sample size is {sizes[pools].median():.2f} of {num_candidates} "
            f"candidates (median of {pools.sum()} pools{tied}). Without {without}, pessimism uses {_DEFAULT_BETA} "
            f"standard deviations of each pool. {remedy}"
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
        rewards = check_rewards(rewards)
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
