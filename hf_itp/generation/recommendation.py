"""
Write and read the `hf_itp` entry of `generation_config.json`, in which a checkpoint recommends how to decode it.

An entry comes from whoever pushed the checkpoint. It is data: it fills in what the caller left open. It cannot run
code, change what the caller asked for, or ask for more than a server would want to give.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.generation.recommended_reward import RecommendedReward
from hf_itp.sampling.thinking import REWARD_VIEWS, check_reward_view
from hf_itp.strategies import Strategy, get_strategy
from hf_itp.strategies.registry import renamed_fields, strategy_class

MAX_RECOMMENDED_CANDIDATES = 1024
"""The largest `num_candidates` an entry may hold; only a caller can ask for more."""

_ENTRY = "hf_itp"
# The keys of an entry, besides the fields of its strategy.
_STRATEGY, _COUNT, _REWARD, _REVISION, _VIEW = _KEYS = (
    "strategy", "num_candidates", "reward_model", "reward_model_revision", "reward_view",
)  # fmt: skip
_IN_THE_CONFIG = f"The {_ENTRY!r} entry of the generation config"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[\w][\w./-]{0,199}")


def decoding_entry(
    strategy: str | None,
    num_candidates: int,
    reward_model: str | None,
    reward_model_revision: str | None = None,
    fields: dict[str, Any] | None = None,
    reward_view: str = "full",
) -> dict[str, Any]:
    """
    Build the entry that `generate(strategy="auto")` follows; empty without a strategy.

    It holds the fields that were given and those the strategy filled in itself, such as pessimism's `beta` and
    `normalize`, so that it says what runs and means the same under another default.

    Raises:
        `ArgumentError`: If there is no such strategy, or it does not take these fields.
    """
    if strategy in (None, "none"):
        return {}
    chosen = get_strategy(str(strategy), **(fields or {}))
    settings = chosen.settings()  # plain numbers, as JSON needs them
    # A field that is None by default and has a value here: the strategy chose it.
    filled_in = {part.name for part in dataclasses.fields(chosen) if part.default is None} - {
        name for name, value in settings.items() if value is None
    }
    count = check_count("num_candidates", num_candidates, 1, "Recommend e.g. 16.")
    view = None if check_reward_view(reward_view) == "full" else reward_view
    entry = {
        _STRATEGY: strategy, _COUNT: count, _REWARD: reward_model, _REVISION: reward_model_revision, _VIEW: view,
    }  # fmt: skip
    return {key: value for key, value in entry.items() if value is not None} | {
        name: settings[name] for name in settings if name in (fields or {}) or name in filled_in
    }


def at_commit(entry: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """Return the entry with the commit of its reward model."""
    return {**entry, _REVISION: commit}


def with_entry(config: GenerationConfig, entry: dict[str, Any]) -> GenerationConfig:
    """Return a copy of a generation config that holds the entry, ready to be saved."""
    config = GenerationConfig.from_dict(config.to_dict())
    if entry:
        setattr(config, _ENTRY, entry)
    # Saved as derived from the model's config, the file would lose unknown keys such as ours when it is read.
    config._from_model_config = False
    return config


def entry_of(model: Any) -> Any:
    """Return the entry of a policy's generation config, unchecked; `None` if there is none."""
    return getattr(model.generation_config, _ENTRY, None)


def recommended_arguments(
    model: Any, ours: dict[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Fill in the arguments of a call with `strategy="auto"` from the checkpoint's entry. What the caller gave stays.

    Args:
        model (`PreTrainedModel`): The policy.
        ours (`dict`): Keywords of `hf_itp`, `strategy="auto"` among them.
        arguments (`dict`): All other arguments, the strategy's own fields among them.

    Returns:
        `tuple`: `ours` with a strategy object, and with a [`RecommendedReward`] if the caller gave no reward model;
        `arguments` without the strategy's own fields.

    Raises:
        `ArgumentError`: If the checkpoint has no entry, or one with unknown keys or values out of range.
    """
    entry = _checked_entry(model)
    # A name that sampling also has, such as top_k, means sampling's if the caller uses it.
    own = [name for name in _field_names(entry) if not hasattr(GenerationConfig(), name)]
    fields = {name: arguments[name] for name in own if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in own}
    return _filled(entry, ours, fields), rest


def recommended_with_fields(model: Any, ours: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """
    Do as [`recommended_arguments`] does, with the strategy's own fields given apart from sampling's keywords.

    A name that both have, such as `top_k`, is then the strategy's.

    Args:
        model (`PreTrainedModel`): The policy.
        ours (`dict`): Keywords of `hf_itp`; `None` leaves one to the checkpoint.
        fields (`dict`): The strategy's own, in place of the checkpoint's.

    Raises:
        `ArgumentError`: If the checkpoint has no valid entry, or its strategy does not take one of the fields.
    """
    return _filled(_checked_entry(model), ours, fields)


def _filled(entry: dict[str, Any], ours: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    if _COUNT in entry:
        filled["num_candidates"] = entry[_COUNT]
    if _VIEW in entry:
        filled["reward_view"] = entry[_VIEW]
    if _REWARD in entry:
        filled["reward_model"] = RecommendedReward(entry[_REWARD], entry.get(_REVISION))
    recommended = {name: entry[name] for name in _field_names(entry) if name in entry}
    strategy: Strategy = get_strategy(entry[_STRATEGY], **(recommended | fields))
    given = {key: value for key, value in ours.items() if value is not None}
    return {**filled, **given, "strategy": strategy}


def _field_names(entry: dict[str, Any]) -> tuple[str, ...]:
    return strategy_class(entry[_STRATEGY]).field_names()


def is_repo_id(name: str) -> bool:
    """Return whether a name has the form of a Hub repository's, so that it cannot be a path."""
    return bool(_REPO_ID.fullmatch(name)) and ".." not in name


def is_hub_id(name: str) -> bool:
    """Return whether others can load a model by this name: a Hub repository's, not a folder of this machine."""
    return is_repo_id(name) and not Path(name).is_dir()


def _checked_entry(model: Any) -> dict[str, Any]:
    """Return the policy's entry if it is harmless."""
    entry = entry_of(model)
    if entry is None:
        raise _missing(model)
    if not isinstance(entry, dict) or not isinstance(entry.get(_STRATEGY), str):
        raise ArgumentTypeError(
            f"{_IN_THE_CONFIG} must be a dict with a {_STRATEGY!r}, got {entry!r:.80}. Pass a strategy by name, e.g. "
            "strategy='pessimism'."
        )
    known = (*_KEYS, *_field_names(entry))
    for old, new in renamed_fields(strategy_class(entry[_STRATEGY])).items():
        if old in entry:
            raise ArgumentError(
                f"{_IN_THE_CONFIG} has `{old}`, which strategy {entry[_STRATEGY]!r} now calls `{new}`. Pass "
                f"strategy={entry[_STRATEGY]!r}, {new}={entry[old]!r:.80}, or have the checkpoint saved again with it."
            )
    if unknown := sorted(set(entry) - set(known)):
        raise ArgumentError(
            f"{_IN_THE_CONFIG} must hold known keys only, got unknown keys: {', '.join(unknown)}. Known for "
            f"strategy {entry[_STRATEGY]!r}: {', '.join(known)}. Pass a strategy by name instead of 'auto'."
        )
    remedy = f"{_IN_THE_CONFIG} says so: pass num_candidates=... and a strategy by name."
    check_count("num_candidates", entry.get(_COUNT, 1), 1, remedy, MAX_RECOMMENDED_CANDIDATES)
    if entry.get(_VIEW, "full") not in REWARD_VIEWS:
        raise ArgumentError(
            f"{_IN_THE_CONFIG} names the reward view {entry[_VIEW]!r:.80}, which is none of "
            f"{', '.join(map(repr, REWARD_VIEWS))}. Pass reward_view=... and a strategy by name."
        )
    reward, revision = entry.get(_REWARD), entry.get(_REVISION)
    # A checkpoint in a folder of the user's own may name another folder; a downloaded one must not name files.
    is_local = Path(str(getattr(model, "name_or_path", "") or "/nowhere")).is_dir() or not model.name_or_path
    if reward is not None and not (isinstance(reward, str) and (is_repo_id(reward) or is_local)):
        raise ArgumentError(
            f"{_IN_THE_CONFIG} must name its reward model by a Hub id, got {reward!r:.80}. Pass reward_model=... "
            "yourself."
        )
    if revision is not None and (reward is None or not isinstance(revision, str) or not _COMMIT.fullmatch(revision)):
        raise ArgumentError(
            f"{_IN_THE_CONFIG} must name a revision of its reward model, got {revision!r:.80}. Pass reward_model=... "
            "yourself."
        )
    return entry


def _missing(model: Any) -> ArgumentError:
    remedy = "Pass a strategy by name, e.g. strategy='pessimism'."
    if getattr(model, "peft_config", None):
        remedy += (
            " If the adapter's repository recommends one, load it too: policy.generation_config = "
            "GenerationConfig.from_pretrained('org/adapter'); transformers takes the base model's."
        )
    return ArgumentError(
        f"`strategy` must be named, got 'auto': the generation config of {type(model).__name__} has no {_ENTRY!r} "
        f"entry that recommends one. {remedy}"
    )
