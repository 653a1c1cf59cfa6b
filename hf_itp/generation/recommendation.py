"""
What a checkpoint says about how it wants to be decoded: one `hf_itp` entry in its `generation_config.json`.

The entry comes from whoever pushed the checkpoint. It is data: it fills what the caller left open, and can neither run
code, nor change what the caller asked for, nor ask for more than a server would want to give.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.generation.recommended_reward import RecommendedReward
from hf_itp.strategies import Strategy, get_strategy
from hf_itp.strategies.registry import strategy_class

ENTRY = "hf_itp"
MAX_RECOMMENDED_CANDIDATES = 1024
"""More than this a caller has to ask for himself."""

_OWN_KEYS = ("strategy", "reward_model", "reward_model_revision", "num_candidates")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w][\w./-]{0,199}")


def recommended_arguments(
    model: Any, ours: dict[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The arguments of a call with `strategy="auto"`, filled up from the checkpoint's entry. What the caller gave stays.

    Args:
        model (`PreTrainedModel`): The policy.
        ours (`dict`): Keywords of `hf_itp`, `strategy="auto"` among them.
        arguments (`dict`): All others, the strategy's own fields among them.

    Returns:
        `tuple`: `ours` with a strategy object, and with a [`RecommendedReward`] where the caller gave no reward model;
        `arguments` without the strategy's own fields.

    Raises:
        `ArgumentError`: If the checkpoint has no entry, or one with unknown keys or values out of range.
    """
    entry = _checked(entry_of(model), model)
    strategy, arguments = _strategy(entry, arguments)
    return _filled(entry, ours, strategy), arguments


def recommended_with_fields(model: Any, ours: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """
    As [`recommended_arguments`], where the strategy's own fields stand apart from sampling's keywords, so that a name
    both have, such as `temperature`, is the strategy's.

    Args:
        model (`PreTrainedModel`): The policy.
        ours (`dict`): Keywords of `hf_itp`; a `None` among them is left to the checkpoint.
        fields (`dict`): The strategy's own, in place of what the checkpoint says of them.

    Raises:
        `ArgumentError`: If the checkpoint has no valid entry, or its strategy does not take one of the fields.
    """
    entry = _checked(entry_of(model), model)
    names = strategy_class(entry["strategy"]).field_names()
    recommended = {name: entry[name] for name in names if name in entry}
    return _filled(entry, ours, get_strategy(entry["strategy"], **(recommended | fields)))


def _filled(entry: dict[str, Any], ours: dict[str, Any], strategy: Strategy) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    if "num_candidates" in entry:
        filled["num_candidates"] = entry["num_candidates"]
    if "reward_model" in entry:
        filled["reward_model"] = RecommendedReward(entry["reward_model"], entry.get("reward_model_revision"))
    given = {key: value for key, value in ours.items() if value is not None}
    return {**filled, **given, "strategy": strategy}


def entry_of(model: Any) -> Any:
    """
    The entry of a policy's generation config, unchecked.

    Raises:
        `ArgumentError`: If there is none.
    """
    entry = getattr(model.generation_config, ENTRY, None)
    if entry is not None:
        return entry
    remedy = "Pass a strategy by name, e.g. strategy='pessimism'."
    if getattr(model, "peft_config", None):
        remedy += (
            " If the adapter's repository recommends one, load it too: policy.generation_config = "
            "GenerationConfig.from_pretrained('org/adapter'); transformers takes the base model's."
        )
    raise ArgumentError(
        f"`strategy` is 'auto', but the generation config of {type(model).__name__} has no {ENTRY!r} entry that "
        f"recommends one. {remedy}"
    )


def is_repo_id(name: str) -> bool:
    """Whether a name has the form of a Hub repository's, so that no path can be meant."""
    return bool(_REPO_ID.fullmatch(name)) and ".." not in name


def _strategy(entry: dict[str, Any], arguments: dict[str, Any]) -> tuple[Strategy, dict[str, Any]]:
    # A name that sampling has too, such as temperature, is sampling's where the caller uses it.
    names = strategy_class(entry["strategy"]).field_names()
    own = [name for name in names if not hasattr(GenerationConfig(), name)]
    fields = {name: entry[name] for name in names if name in entry}
    fields |= {name: arguments[name] for name in own if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in own}
    return get_strategy(entry["strategy"], **fields), rest


def _checked(entry: Any, model: Any) -> dict[str, Any]:
    """The entry, once it is known to be harmless."""
    if not isinstance(entry, dict) or not isinstance(entry.get("strategy"), str):
        raise ArgumentTypeError(
            f"The {ENTRY!r} entry of the generation config has to be a dict with a 'strategy', but is {entry!r:.80}."
            " Pass a strategy by name, e.g. strategy='pessimism'."
        )
    name = entry["strategy"]
    fields = strategy_class(name).field_names()
    unknown = sorted(set(entry) - set(_OWN_KEYS) - set(fields))
    if unknown:
        raise ArgumentError(
            f"The {ENTRY!r} entry of the generation config has unknown keys: {', '.join(unknown)}. Known for strategy "
            f"{name!r}: {', '.join([*_OWN_KEYS, *fields])}. Pass a strategy by name instead of 'auto'."
        )
    remedy = f"The {ENTRY!r} entry of the generation config says so: pass num_candidates=... and a strategy by name."
    check_count("num_candidates", entry.get("num_candidates", 1), 1, remedy, MAX_RECOMMENDED_CANDIDATES)
    _check_reward_model(entry, model)
    return entry


def _check_reward_model(entry: dict[str, Any], model: Any) -> None:
    reward, revision = entry.get("reward_model"), entry.get("reward_model_revision")
    # A checkpoint in a folder of the user's own may name another one; one that was downloaded may not reach for files.
    is_local = Path(str(getattr(model, "name_or_path", "") or "/nowhere")).is_dir() or not model.name_or_path
    if reward is not None and not (isinstance(reward, str) and (is_repo_id(reward) or is_local)):
        raise ArgumentError(
            f"The {ENTRY!r} entry of the generation config names the reward model {reward!r:.80}, which is no Hub id. "
            "Pass reward_model=... yourself."
        )
    if revision is not None and (reward is None or not isinstance(revision, str) or not _REVISION.fullmatch(revision)):
        raise ArgumentError(
            f"The {ENTRY!r} entry of the generation config names the revision {revision!r:.80}, which is none of a "
            "reward model's. Pass reward_model=... yourself."
        )
