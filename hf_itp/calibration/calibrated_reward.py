"""
A reward on the reference policy's own scale, usable like any reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_itp.calibration.calibrator import RewardCalibrator
from hf_itp.calibration.fingerprints import reward_identity
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.base import Prompt, ResponseIds
from hf_itp.rewards.resolve import RewardLike


class CalibratedReward(RewardFunction):
    """
    Score a response by the share, in `[0, 1]`, of reference responses to the same prompt that it beats.

    With it the `beta` of pessimism means the same for every prompt and reward model: a `beta` of at most 1/2 keeps the
    best `sqrt(2 beta)` of the policy's mass, at a win rate of `1 - sqrt(2 beta) / 3`.

    Args:
        reward_model: Anything that [`~rewards.as_reward_function`] takes.
        calibrator ([`RewardCalibrator`]): Fitted with that reward model.

    Raises:
        `ArgumentError`: If the calibrator was fitted with another reward model.

    Examples:

    ```python
    >>> import torch
    >>> def length(prompts, completions, **kwargs):
    ...     return [float(len(completion)) for completion in completions]
    >>> calibrator = RewardCalibrator(["Why?"], torch.tensor([[2.0, 4.0, 6.0, 8.0]]))
    >>> CalibratedReward(length, calibrator)(["Why?"], ["Because."])
    tensor([0.8750])

    ```
    """

    def __init__(self, reward_model: RewardLike, calibrator: RewardCalibrator):
        self._reward, self._calibrator = as_reward_function(reward_model), calibrator
        calibrator.check_belongs(reward_model=reward_identity(self._reward))
        self.name = f"calibrated({self._reward.name})"

    @property
    def devices(self) -> frozenset[torch.device]:
        return self._reward.devices

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> torch.Tensor:
        return self._calibrator.calibrate(prompts, self._reward.rewards_of(prompts, responses, response_ids, columns))

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        self._calibrator.check_prompts(prompts)
        self._reward.check(prompts, **columns)

    def takes(self, column: str) -> bool:
        return self._reward.takes(column)
