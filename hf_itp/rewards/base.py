"""
The contract of a reward: prompts and responses in, one float32 reward per pair out.

Knows nothing of policies, sampling or strategies.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from hf_itp.errors import RewardError

Prompt = str | list[dict]
"""A prompt as a reward sees it: plain text, or a chat (a list of messages with `role` and `content`)."""


class RewardFunction(ABC):
    """
    Scores responses to prompts. A subclass defines [`score`]; calling the object also checks what comes back.

    Args of a call:
        prompts (`list[str]` or `list[list[dict]]`): One prompt, text or chat, per response.
        responses (`list[str]`): The responses as text, without special tokens.
        response_ids (`list[torch.LongTensor]`, *optional*): Their tokens under the policy's tokenizer, for rewards
            that look at tokens.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32, on the CPU, finite.
    """

    name: str

    @property
    def devices(self) -> frozenset[torch.device]:
        """Where it computes; empty where nobody knows."""
        return frozenset()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: Sequence[torch.Tensor] | None = None,
        **columns: Sequence[Any],
    ) -> torch.Tensor:
        if len(prompts) != len(responses):
            raise RewardError(
                f"`prompts` and `responses` have to pair up, but there are {len(prompts)} prompts and "
                f"{len(responses)} responses. Repeat each prompt once per response."
            )
        if len(responses) == 0:
            return torch.empty(0)
        taken = columns if columns and takes_any_keyword(self.score) else {}
        rewards = self.score(prompts, responses, response_ids, **taken)
        return _checked(rewards, len(responses), self.name)

    def check(self, prompts: Sequence[Prompt], **columns: Sequence[Any]) -> None:
        """Raises now what a call on these prompts would raise, before anything is drawn."""
        return None

    @abstractmethod
    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor | Sequence[float]:
        """The rewards of `n >= 1` pairs, in order."""


def takes_any_keyword(function: Any) -> bool:
    """Whether a function has a `**keyword` parameter."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _checked(rewards: object, count: int, name: str) -> torch.Tensor:
    """The rewards as finite float32 on the CPU, one per response."""
    if isinstance(rewards, Sequence):
        rewards = _numbers(rewards, name)
    try:
        rewards = torch.as_tensor(rewards).detach()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"Reward function `{name}` has to return floats, but returned a {type(rewards).__name__}. Return one "
            "float per response, in order."
        ) from None
    if rewards.dim() == 1 and len(rewards) != count:
        raise RewardError(
            f"Reward function `{name}` returned {len(rewards)} rewards for {count} responses. Return one float per "
            "response, in order."
        )
    if rewards.shape != (count,) or rewards.is_complex():
        raise RewardError(
            f"Reward function `{name}` returned rewards of shape {tuple(rewards.shape)} and dtype {rewards.dtype} for "
            f"{count} responses. Return one float per response, in order."
        )
    rewards = rewards.to(device="cpu", dtype=torch.float32)
    if not torch.isfinite(rewards).all():
        position = int((~torch.isfinite(rewards)).nonzero()[0])
        raise RewardError(
            f"Reward function `{name}` returned {rewards[position].item()} for response {position} of {count}, so no "
            "candidate can be ranked. Return a finite float for every response."
        )
    return rewards


def _numbers(rewards: Sequence[object], name: str) -> list[float]:
    numbers: list[float] = []
    for position, reward in enumerate(rewards):
        try:
            numbers.append(float(reward))  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(
                f"Reward function `{name}` returned {reward!r} for response {position} of {len(rewards)}, so no "
                "candidate can be ranked. Return a finite float for every response."
            ) from None
    return numbers
