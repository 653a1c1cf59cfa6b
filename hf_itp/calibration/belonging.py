"""
Whether a calibration belongs where it is to be used: to this policy, this reward, and this way of drawing responses.
"""

from __future__ import annotations

from typing import Any

from hf_itp.calibration.fingerprints import are_different
from hf_itp.errors import ArgumentError
from hf_itp.sampling.description import differences


def check_identity(name: str, given: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """
    Args:
        name (`str`): `policy` or `reward_model`.
        given (`dict`, *optional*): Whose the calibration is to be.
        own (`dict`): Whose it is.

    Raises:
        `ArgumentError`: If they are different models.
    """
    if given is not None and own["name"] and are_different(given, own):
        raise ArgumentError(
            f"`calibrator` has to belong to this {name.replace('_', ' ')} ({given['name']}), but was fitted "
            f"with {own['name']}{' of other weights' if given['name'] == own['name'] else ''}. Fit one with "
            f"it: RewardCalibrator.fit(policy, reward_model, prompts)."
        )


def check_draw(given: dict[str, Any] | None, own: dict[str, Any] | None) -> None:
    """
    Compares two recorded draws whole; what is not known cannot be compared.

    Raises:
        `ArgumentError`: If responses are to be drawn otherwise than the references were; names every difference.
    """
    different = differences(given, own) if given is not None and own is not None else []
    if different:
        listed = "; ".join(f"`{name}` is {ours!r:.60} and was {theirs!r:.60}" for name, ours, theirs in different)
        raise ArgumentError(
            f"`calibrator` must hold references drawn as responses are to be drawn now, got another draw: {listed}. "
            "Pass the same to RewardCalibrator.fit, or leave `calibrator` out to have it fitted."
        )
