"""
Several rewards as one, by the formulas of [`functional.ensembles`].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_itp.checks import check_choice, check_positive
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.functional.ensembles import AGGREGATIONS, aggregate_rewards
from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction


class RewardEnsemble(RewardFunction):
    r"""
    Combine the rewards of its members, response by response.

    `"mean"` averages, `"minimum"` takes the least favourable member, and `"mean_minus_std"` is \\( \mu - c \sigma \\)
    with the standard deviation over the members, which penalizes disagreement. Members must be on one scale, which is
    not checked.

    *Cost*: every member scores every response.

    Args:
        members (`Sequence[RewardFunction]`):
            The rewards to combine; [`as_reward_function`] makes one out of a model, an id or a callable.
        aggregate (`str`, *optional*, defaults to `"mean"`):
            `"mean"`, `"minimum"` or `"mean_minus_std"`.
        penalty (`float`, *optional*, defaults to 1.0):
            `c`, in standard deviations; used only by `"mean_minus_std"`.

    Raises:
        `ArgumentError`: If there is no member, or an option breaks its rule.
        `ArgumentTypeError`: If a member is not a [`RewardFunction`].

    Examples:

    ```python
    >>> from hf_itp.rewards import CallableReward, RewardEnsemble
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> def politeness(prompts, completions, **kwargs):
    ...     return [float("please" in completion) for completion in completions]
    >>> ensemble = RewardEnsemble([CallableReward(brevity), CallableReward(politeness)], aggregate="minimum")
    >>> ensemble(["Hm?", "Hm?"], ["Go on, please.", "Go"])
    tensor([-14.,  -2.])

    ```
    """

    def __init__(self, members: Sequence[RewardFunction], aggregate: str = "mean", penalty: float = 1.0) -> None:
        members = list(members)
        if not members:
            raise ArgumentError("An ensemble must have at least one member, got none. Pass a reward model.")
        for position, member in enumerate(members):
            if not isinstance(member, RewardFunction):
                raise ArgumentTypeError(
                    f"Member {position} of an ensemble must be a RewardFunction, got a {type(member).__name__}. "
                    "Wrap it in `as_reward_function(...)`."
                )
        check_choice("aggregate", aggregate, AGGREGATIONS)
        penalty = check_positive("penalty", penalty, "Use aggregate='mean' to ignore disagreement.")
        self.members = members
        self.aggregate = aggregate
        self.penalty = penalty
        self.name = f"{aggregate}({', '.join(member.name for member in members)})"

    @property
    def devices(self) -> frozenset[torch.device]:
        known = [member.devices for member in self.members]
        return frozenset().union(*known) if all(known) else frozenset()

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> torch.Tensor:
        rewards = torch.stack(
            [member.rewards_of(prompts, responses, response_ids, columns) for member in self.members]
        )  # (members, n)
        return aggregate_rewards(rewards, self.aggregate, self.penalty)

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        for member in self.members:
            member.check(prompts, **columns)

    def takes(self, column: str) -> bool:
        return any(member.takes(column) for member in self.members)
