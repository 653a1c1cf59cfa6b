"""
The name by which others can load a reward model: a Hub id and a commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from hf_itp.embedded import reward_model_path
from hf_itp.errors import ArgumentError, ItpError
from hf_itp.generation.recommendation import is_hub_id
from hf_itp.models.origins import origin_of
from hf_itp.rewards import RewardFunction, RewardModel


def reward_reference(reward_model: Any) -> tuple[str | None, str | None]:
    """
    Return the id and, if known, the commit by which others can load a reward model.

    Raises:
        `ArgumentError`: If there is no such id: of a function, an ensemble, a folder on this machine.
    """
    if reward_model is None:
        return None, None
    if isinstance(reward_model, str):
        name, revision = reward_model, None
    else:
        # A classifier has a `model` too: its body.
        scored_by = getattr(reward_model, "model", None) if isinstance(reward_model, RewardFunction) else reward_model
        origin = origin_of(scored_by)
        name = str(getattr(reward_model, "name", None) or ("" if origin is None else origin.name))
        revision = getattr(reward_model, "revision", None)
        if revision is None and origin is not None and origin.name == name:
            revision = origin.commit
    if name == "embedded" or _is_embedded(name):
        return "embedded", None
    if not is_hub_id(name):
        raise ArgumentError(
            f"`reward_model` must be one that others can load, a Hub id or 'embedded', got {name!r}. Push it first, "
            "or leave `reward_model` out."
        )
    return name, revision


def published_reward(reward: RewardFunction) -> tuple[str | None, str | None]:
    """Return the id and the commit likewise, `(None, None)` for a function, an ensemble or a local folder."""
    try:
        return reward_reference(reward) if isinstance(reward, RewardModel) else (None, None)
    except ArgumentError:
        return None, None


def current_commit(api: HfApi, name: str) -> str | None:
    """Return the commit a model on the Hub is at; raise `ArgumentError` if there is none or it cannot be seen."""
    try:
        info = api.model_info(name)
    except HTTPError as error:
        raise ArgumentError(
            f"`reward_model` must be on the Hub, got {name!r}, which cannot be found ({type(error).__name__}). "
            "Correct the id, push it first, or leave `reward_model` out."
        ) from error
    return info.sha


def _is_embedded(name: str) -> bool:
    try:
        return Path(name).is_dir() and Path(name).resolve() == Path(reward_model_path()).resolve()
    except ItpError:  # its packages are not installed
        return False
