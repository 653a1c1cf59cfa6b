"""
Check that a calibration fits its use: the same policy, reward, and way of drawing responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_itp.calibration.fingerprints import are_different
from hf_itp.errors import ArgumentError
from hf_itp.rewards.base import Prompt
from hf_itp.sampling.recorded import differences


def check_identity(name: str, given: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """
    Refuse a calibration of another model.

    Args:
        name (`str`): `policy` or `reward_model`.
        given (`dict`, *optional*): Identity of the model it is used with.
        own (`dict`): Identity of the model it was fitted with.

    Raises:
        `ArgumentError`: If they are different models.
    """
    if given is not None and own["name"] and are_different(given, own):
        raise ArgumentError(
            f"`calibrator` must belong to this {name.replace('_', ' ')} ({given['name']}), got one fitted with "
            f"{own['name']}{' of other weights' if given['name'] == own['name'] else ''}. Fit another: "
            "RewardCalibrator.fit(policy, reward_model, prompts)."
        )


def check_draw(
    given: dict[str, Any] | None, own: dict[str, Any] | None, prompts: Sequence[Prompt] | None = None
) -> None:
    """
    Refuse to draw responses in another way than the references, if both ways are recorded.

    Args:
        prompts (`list`, *optional*): Those that are drawn for. By default all that either draw records.

    Raises:
        `ArgumentError`: If the two draws differ; names every difference.
    """
    different = differences(given, own, prompts) if given is not None and own is not None else []
    if different:
        listed = "; ".join(f"`{name}` is {ours!r:.60} and was {theirs!r:.60}" for name, ours, theirs in different)
        raise ArgumentError(
            f"`calibrator` must hold references drawn as responses are to be drawn now, got another draw: {listed}. "
            "Pass the same to RewardCalibrator.fit, or leave `calibrator` out to have it fitted."
        )
