"""
The contract of a selection strategy: rewards of a pool in, indices of the responses to return out.

A strategy knows nothing of models, tokenizers or text, and no strategy knows another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from hf_itp.checks import as_number, check_finite, check_law, check_num_return_sequences, check_rewards
from hf_itp.functional.selection import effective_sample_size, sample_without_replacement

# Rewards worked on at once by a CPU, so that what is computed on the way (float64, several times as much) stays in its
# cache: 2 to 4 times as fast as all of 10,000 x 1,000 at once, and nearly the same from half to four times this size.
_BLOCK = 2**17


@dataclass(frozen=True)
class Strategy(ABC):
    """
    Picks `num_return_sequences` of the `N` candidates drawn for a prompt, given their rewards.

    A subclass is a frozen dataclass whose fields are the strategy's own keywords of `generate`. It has to define
    [`probabilities`]; [`select`] follows from it.

    Shapes: leading dimensions `...` are prompts, the last one is the pool.
    """

    name: ClassVar[str]

    @abstractmethod
    def probabilities(self, rewards: torch.Tensor) -> torch.Tensor:
        """
        Exact law of the first returned index given the pool.

        Args:
            rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.

        Returns:
            `torch.Tensor` of shape `(..., N)`, float64: Probabilities that sum to 1.
        """

    def select(
        self,
        rewards: torch.Tensor,
        num_return_sequences: int = 1,
        generator: torch.Generator | None = None,
        law: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Draws the indices to return, all different: the first from [`probabilities`], each further one from the same
        law restricted to what is left. Where that law has no mass left, the highest remaining rewards follow.

        Args:
            rewards (`torch.Tensor` of shape `(..., N)`): Finite rewards of the candidates.
            num_return_sequences (`int`, *optional*, defaults to 1): How many indices per pool, between 1 and `N`.
            generator (`torch.Generator`, *optional*): Source of randomness; torch's global one without it.
            law (`torch.Tensor` of shape `(..., N)`, *optional*): Their checked [`probabilities`], where known already.

        Returns:
            `torch.LongTensor` of shape `(..., num_return_sequences)`.
        """
        check_finite(rewards)
        num_return_sequences = check_num_return_sequences(num_return_sequences, rewards.shape[-1])
        size = rewards.shape[-1]
        pools = rewards.reshape(-1, size)
        # Prompts do not matter to one another, so the work may be done in any portions.
        block = max(1, _BLOCK // size if rewards.device.type == "cpu" else len(pools))
        laws = None if law is None else law.reshape(-1, size).split(block)
        indices: list[torch.Tensor] = []
        for part in map(check_rewards, pools.split(block)):
            if laws is None:
                first_row = len(indices) * block if rewards.dim() > 1 else None
                own = check_law(self.probabilities(part), part, self.name, first_row)
            else:
                own = laws[len(indices)]
            indices.append(sample_without_replacement(own, num_return_sequences, generator, self.preference(part)))
        return torch.cat(indices).reshape(*rewards.shape[:-1], num_return_sequences)

    def preference(self, rewards: torch.Tensor) -> torch.Tensor:
        """Of the candidates `(..., N)` without any probability, the highest of these are returned first."""
        return rewards

    @property
    def takes_law(self) -> bool:
        """Whether [`decide`], [`select`] and [`diagnostics`] take known [`probabilities`] as `law`: these here do."""
        names = ("decide", "select", "diagnostics")
        return all(getattr(type(self), name) is getattr(Strategy, name) for name in names)

    def num_extra_candidates(self, num_candidates: int, num_return_sequences: int) -> int:
        """How many candidates beyond `num_candidates` [`decide`] may ask for. 0 for all that select from one pool."""
        return 0

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

        Called again with a longer `rewards` and an identically seeded `generator` after each further draw.

        Args:
            rewards (`torch.Tensor` of shape `(P,)`): Rewards of all candidates drawn so far, in the order drawn.
            num_candidates (`int`): `N`, the size of the first pool; `P >= N`.
            num_return_sequences (`int`, *optional*, defaults to 1): How many indices to return.
            generator (`torch.Generator`, *optional*): Source of randomness.
            law (`torch.Tensor` of shape `(P,)`, *optional*): Their checked [`probabilities`], where known already.
                Given only to a strategy that [`takes_law`].
        """
        return self.select(rewards, num_return_sequences, generator, law)

    def diagnostics(self, rewards: torch.Tensor, law: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """
        What the rule found in each pool `(..., N)`: tensors of shape `(...)`, by name. `law` is as in [`select`].
        """
        law = check_law(self.probabilities(rewards), rewards, self.name) if law is None else law
        return {"effective_sample_size": effective_sample_size(law)}

    def selection_diagnostics(self, indices: torch.Tensor, num_candidates: int) -> dict[str, torch.Tensor]:
        """What the indices `(..., k)` from [`decide`] say beyond the pool: tensors of shape `(...)`, by name."""
        return {}

    def advice(self, rewards: torch.Tensor) -> str | None:
        """One sentence for the user when the settings make this another strategy on these pools, or `None`."""
        return None

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the strategy's own fields: the keywords of `generate` that are its."""
        return tuple(field.name for field in fields(cls))

    def settings(self) -> dict[str, Any]:
        """The strategy's own fields, as plain JSON values."""
        values = {name: getattr(self, name) for name in self.field_names()}
        # A subclass may hold a number as it was given: numpy's are none that JSON takes.
        return {name: value if (number := as_number(value)) is None else number for name, value in values.items()}
