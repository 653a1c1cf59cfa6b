"""What decides the results of `hf-itp generate`, recorded beside them so that a later run can go on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_itp.policies.policy import Policy
    from hf_itp.rewards.base import Prompt


def settings_of(
    policy: Policy,
    prompts: Sequence[Prompt],
    columns: Mapping[str, Sequence[Any]],
    chosen: Mapping[str, Any],
    **others: Any,
) -> dict[str, Any]:
    """
    Return everything that decides the results, as JSON. How many prompts or candidates are drawn at once is left out:
    it changes rounding at most.

    Args:
        policy ([`Policy`]): Its weights, adapters, chat template and generation config count, not its name.
        prompts (`list`): In order.
        columns (`dict[str, list]`): Further columns of their rows.
        chosen (`dict`): Keywords of `generate`, `strategy` and `reward_model` among them.
        others: Further settings.
    """
    from hf_itp.calibration.fingerprints import policy_identity
    from hf_itp.sampling.recorded import as_json, fingerprint

    config = policy.model.generation_config.to_dict()
    reward, strategy = chosen["reward_model"], chosen["strategy"]
    settings = {
        **{name: value for name, value in chosen.items() if name not in ("reward_model", "strategy")},
        **others,
        "strategy": {"name": strategy.name, **strategy.settings()},
        "reward_model": [_reward(one) for one in (reward if isinstance(reward, list) else [reward])],
        "policy": _model(policy_identity(policy.model)),
        "chat_template": fingerprint(policy.tokenizer.chat_template),
        "generation_config": {name: value for name, value in config.items() if name != "transformers_version"},
        "prompts": {"number": len(prompts), "fingerprint": fingerprint(list(prompts))},
        "columns": {name: fingerprint(list(column)) for name, column in columns.items()},
    }
    return as_json("settings", settings)


def _reward(reward: Any) -> dict[str, Any]:
    from hf_itp.calibration.fingerprints import reward_identity
    from hf_itp.generation.recommended_reward import RecommendedReward
    from hf_itp.rewards import as_reward_function

    if isinstance(reward, RecommendedReward):
        return {"name": reward.name, "revision": reward.revision}
    return _model(reward_identity(as_reward_function(reward)))


def _model(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without what a copy of the same weights may have otherwise."""
    return identity if identity["weights"] is None else identity | {"name": None, "revision": None}
