"""
A reward around another one: the same rewards, called in another way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import torch

from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction
from hf_itp.rewards.pending import all_of
from hf_itp.rewards.values import or_none


class WrappedReward(RewardFunction):
    """
    Scores as another reward does, under its name. A subclass changes what it has to.

    Args:
        reward ([`RewardFunction`]): The reward. This object has all its other attributes too: its model and revision
            identify it.
    """

    def __init__(self, reward: RewardFunction):
        self._reward, self.name = reward, reward.name

    def __getattr__(self, name: str) -> Any:
        if name == "_reward":  # not yet there while an object is copied or unpickled
            raise AttributeError(name)
        return getattr(self._reward, name)

    @property
    def devices(self) -> frozenset[torch.device]:
        return self._reward.devices

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> Sequence[float | None] | Awaitable[Any]:
        begun = self._reward.begin(prompts, responses, response_ids, columns)
        rewards: Sequence[float | None] | Awaitable[Any] = all_of([begun], lambda found: or_none(found[0]))
        return rewards

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        self._reward.check(prompts, **columns)

    def takes(self, column: str) -> bool:
        return self._reward.takes(column)
