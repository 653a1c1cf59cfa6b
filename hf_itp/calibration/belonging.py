"""
Check that a calibration fits its use: the same policy, reward, and way of drawing responses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hf_itp.calibration.fingerprints import are_different
from hf_itp.errors import ArgumentError
from hf_itp.models.public_names import LOCAL, public_name, public_policy
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


def models_without_a_name(policy: dict[str, Any], reward_model: dict[str, Any]) -> list[str]:
    """Return which of the two models others cannot be told the name of, since it is a folder of this machine."""
    names = {"policy": public_policy(policy["name"]), "reward model": public_name(reward_model["name"])}
    return [what for what, name in names.items() if LOCAL in name]


def left_out(what: str, remedy: str = "Push these models first, and calibrate with their Hub ids.") -> str:
    """Return the warning over what is published without the name of a folder."""
    return f"Folders of this machine are not named to others, so what is pushed leaves out {what}. {remedy}"


def published_identities(
    policy: dict[str, Any], reward_model: dict[str, Any], draw: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Return copies of what a calibration records that name no folder of this machine."""
    draw = copy.deepcopy(draw)
    for part in () if draw is None else (draw["policy"], draw["tokenizer"]):
        part["name"] = public_policy(part["name"])
    return (
        {**policy, "name": public_policy(policy["name"])},
        {**reward_model, "name": public_name(reward_model["name"])},
        draw,
    )
