"""
What a checkpoint says about how it wants to be decoded: one `hf_itp` entry in its `generation_config.json`.
"""

from __future__ import annotations

from typing import Any

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.strategies.registry import strategy_class

ENTRY = "hf_itp"
_OWN_KEYS = ("strategy", "reward_model", "num_candidates")


def recommended_arguments(
    model: Any, ours: dict[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The arguments of a call with `strategy="auto"`, filled up from the checkpoint's entry. What the caller gave stays.

    Args:
        model (`PreTrainedModel`): The policy.
        ours (`dict`): Keywords of `hf_itp`, `strategy="auto"` among them.
        arguments (`dict`): All others, the strategy's own fields among them.

    Raises:
        `ArgumentError`: If the checkpoint has no entry, or one with unknown keys.
    """
    entry = getattr(model.generation_config, ENTRY, None)
    if entry is None:
        raise ArgumentError(
            f"`strategy` is 'auto', but the generation config of {type(model).__name__} has no {ENTRY!r} entry that "
            "recommends one. Pass a strategy by name, e.g. strategy='pessimism'."
        )
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
    recommended = {key: entry[key] for key in _OWN_KEYS if key in entry}
    given = {key: value for key, value in ours.items() if value is not None and key != "strategy"}
    own_fields = {key: entry[key] for key in fields if key in entry}
    return {**recommended, **given}, {**own_fields, **arguments}
