"""What the embedded models are called where others can load them, told from the folders they are built into."""

from __future__ import annotations

import re

POLICY_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Hub id of the policy that the embedded one is a 4-bit rounding of; see `model_cards/embedded_policy.md`."""
POLICY_LICENSE = "apache-2.0"

# The folders that `build_once` makes, in any cache.
_FOLDER = r"(?:^|.*[/\\])hf_itp[/\\]embedded[/\\]models[/\\]{}-[0-9a-f]{{16}}[/\\]?"
_POLICY, _REWARD = (re.compile(_FOLDER.format(name)) for name in ("SmolLM2-135M-Instruct", "helpfulness-reward"))


def names_policy(name: str) -> bool:
    """
    Return whether a name or path is that of the embedded policy.

    Examples:

    ```python
    >>> names_policy("embedded"), names_policy("org/policy")
    (True, False)

    ```
    """
    return name == "embedded" or _POLICY.fullmatch(name) is not None


def names_reward_model(name: str) -> bool:
    """Return whether a name or path is that of the embedded reward model."""
    return name == "embedded" or _REWARD.fullmatch(name) is not None
