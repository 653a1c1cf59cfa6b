"""
Record what decides a draw of references: models, settings, prompts, and the columns that the reward takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_itp.calibration.fingerprints import model_identity, policy_identity, reward_identity
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards.base import Prompt, RewardFunction
from hf_itp.sampling.description import DrawDescription
from hf_itp.sampling.recorded import fingerprint


def recorded_identities(
    policy: Any, reward: RewardFunction, description: DrawDescription, prompts: Sequence[Prompt], asked: dict[str, Any]
) -> dict[str, Any]:
    """Return what a calibration keeps: policy, reward model, and how the responses are drawn, short and whole."""
    return {
        "policy": model_identity(policy),
        "reward_model": reward_identity(reward),
        "sampling": asked,
        "draw": description.entries(policy_identity(policy), prompts),
    }


def pool_settings(
    recorded: Mapping[str, Any],
    reward: RewardFunction,
    description: DrawDescription,
    prompts: Sequence[Prompt],
    columns: Mapping[str, Sequence[Any]],
    num_reference: int,
    seed: int,
) -> dict[str, Any]:
    """Return everything that decides what a pool holds; a pool of other settings is not resumed."""
    return {
        **recorded,
        "num_reference": num_reference,
        "seed": seed,
        "prompts": [prompt_fingerprint(prompt) for prompt in prompts],
        "prompt_ids": fingerprint([description.prompt_ids(prompt) for prompt in prompts]),
        "reward_columns": {name: fingerprint(column) for name, column in columns.items() if reward.takes(name)},
    }
