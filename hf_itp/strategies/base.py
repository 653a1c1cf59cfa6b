"""
Contract of a selection strategy: it takes the rewards of a pool and gives the indices of the responses to return.

Knows nothing of models, tokenizers or text; no strategy knows another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from hf_itp.checks import as_number, check_finite, check_law, check_num_return_sequences, check_rewards
from hf_itp.functional.selection import effective_sample_size, sample_without_replacement

# Rewards a CPU works on at once. Intermediate results then stay in its cache: 2 to 4 times as fast as all of
# 10,000 x 1,000 rewards at once, and nearly the same from half to four times this size.
_BLOCK = 2**17


def checked(check: Callable[[Any], Any]) -> Any:
    """Declare a required field that holds what `check` returns for the value given."""
    return field(metadata={"check": check})


@dataclass(frozen=True)
class Strategy(ABC):
    """
    Pick `num_return_sequences` of the `N` candidates drawn for a prompt, given their rewards.

    A subclass is a frozen dataclass whose fields are the strategy's own keywords of `generate`. It must define
    [`probabilities`]; everything else has a default that follows from it.

    Shapes: the last dimension is the pool, those before it are prompts.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for part in fields(self):
            if check := part.metadata.get("check"):
                object.__setattr__(self, part.name, check(getattr(self, part.name)))

    @abstractmethod
    def probabilities(self, rewards: Tensor) -> Tensor:
        """
        Return the exact law of the first returned index given the pool.

        Args:
            rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.

        Returns:
            `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1.
        """

    def select(
        self,
        rewards: Tensor,
        num_return_sequences: int = 1,
        generator: Generator | None = None,
        law: Tensor | None = None,
    ) -> Tensor:
        """
        Draw different indices to return: the first from [`probabilities`], each further one from the same law
        restricted to the rest. Once that law has no mass left, the rest follows by [`preference`].

        Args:
            rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
            num_return_sequences (`int`, *optional*, defaults to 1): Indices per pool, from 1 to `N`.
            generator (`torch.Generator`, *optional*): Source of randomness; by default torch's global one.
            law (`torch.Tensor` of shape `(..., N)`, *optional*): Their checked [`probabilities`], if known already.

        Returns:
            `torch.LongTensor` of shape `(..., num_return_sequences)`.
        """
        check_finite(rewards)
        num_return_sequences = check_num_return_sequences(num_return_sequences, rewards.shape[-1])
        size = rewards.shape[-1]
        pools = rewards.reshape(-1, size)
        # Prompts are independent, so they can be processed in portions of any size.
        block = max(1, _BLOCK // size if rewards.device.type == "cpu" else len(pools))
        laws = None if law is None else law.reshape(-1, size).split(block)
        indices: list[Tensor] = []
        for part in map(check_rewards, pools.split(block)):
            if laws is None:
                first_row = len(indices) * block if rewards.dim() > 1 else None
                own = check_law(self.probabilities(part), part, self.name, first_row)
            else:
                own = laws[len(indices)]
            indices.append(sample_without_replacement(own, num_return_sequences, generator, self.preference(part)))
        return torch.cat(indices).reshape(*rewards.shape[:-1], num_return_sequences)

    def subsample_probabilities(self, rewards: Tensor, num_candidates: int) -> Tensor | None:
        """
        Return the law when the candidates are a random subset of a pool, `None` if it has no closed form.

        Args:
            rewards (`torch.Tensor` of shape `(..., P)`): Finite rewards of the pool.
            num_candidates (`int`): Size of the subset, from 1 to `P`.

        Returns:
            `torch.Tensor` of shape `(..., P)`, float64: Probabilities that sum to 1.
        """
        return None

    def preference(self, rewards: Tensor) -> Tensor:
        """Return the order `(..., N)`, highest first, in which candidates of probability 0 are returned."""
        return rewards

    @property
    def takes_law(self) -> bool:
        """Whether [`decide`], [`select`] and [`diagnostics`] take known [`probabilities`] as `law`, as these do."""
        names = ("decide", "select", "diagnostics")
        return all(getattr(type(self), name) is getattr(Strategy, name) for name in names)

    def num_extra_candidates(self, num_candidates: int, num_return_sequences: int) -> int:
        """Return how many candidates beyond `num_candidates` [`decide`] may need: 0 when it selects from one pool."""
        return 0

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

        Called again after each further draw, with the longer `rewards` and an identically seeded `generator`.

        Args:
            rewards (`torch.Tensor` of shape `(P,)`): Rewards of all candidates drawn so far, in the order drawn.
            num_candidates (`int`): `N`, the size of the first pool; `P >= N`.
            num_return_sequences (`int`, *optional*, defaults to 1): How many indices to return.
            generator (`torch.Generator`, *optional*): Source of randomness.
            law (`torch.Tensor` of shape `(P,)`, *optional*): Their checked [`probabilities`], where known already.
                Given only to a strategy that [`takes_law`].
        """
        return self.select(rewards, num_return_sequences, generator, law)

    def diagnostics(self, rewards: Tensor, law: Tensor | None = None) -> dict[str, Tensor]:
        """Return diagnostics of each pool `(..., N)`: tensors of shape `(...)`, by name. `law` is as in [`select`]."""
        law = check_law(self.probabilities(rewards), rewards, self.name) if law is None else law
        return {"effective_sample_size": effective_sample_size(law)}

    def selection_diagnostics(self, indices: Tensor, num_candidates: int) -> dict[str, Tensor]:
        """Return diagnostics of the indices `(..., k)` from [`decide`]: tensors of shape `(...)`, by name."""
        return {}

    def advice(self, rewards: Tensor) -> str | None:
        """Return one sentence for the user if the settings turn this into another strategy on these pools."""
        return None

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of the strategy's fields, its own keywords of `generate`."""
        return tuple(part.name for part in fields(cls))

    def settings(self) -> dict[str, Any]:
        """Return the strategy's fields as plain JSON values."""
        values = {name: getattr(self, name) for name in self.field_names()}
        # A subclass may keep a number as it was given, such as numpy's, which JSON refuses.
        return {name: value if (number := as_number(value)) is None else number for name, value in values.items()}
