"""Names of models as others may read them: Hub ids and functions stay, folders of this machine go."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hf_itp.embedded.names import POLICY_ID, names_policy, names_reward_model

LOCAL = "a local folder"
"""Stands where a name was a path of this machine."""

# A path from its root on, not the end of a URL or of a Hub id.
_PATH = re.compile(r"(?<![\w.:/~\\-])(?:~|[A-Za-z]:(?=[\\/]))?[\\/][\w.~@+-]+(?:[\\/][\w.~@+-]*)*")


def public_policy(name: str) -> str:
    """Return the name of a policy as others may read it: of the embedded one the Hub id it was made from."""
    return POLICY_ID if names_policy(name) else public_name(name)


def public_name(name: str) -> str:
    """
    Return a name as others may read it.

    Examples:

    ```python
    >>> public_name("org/reward-model"), public_name("/home/me/reward"), public_name("mean(org/a, /home/me/b)")
    ('org/reward-model', 'a local folder', 'mean(org/a, a local folder)')

    ```
    """
    if names_reward_model(name):
        return "embedded"
    if os.path.isabs(name) or name.startswith(("~", "./", "../")) or ("/" in name and Path(name).is_dir()):
        return LOCAL
    return without_paths(name)


def without_paths(text: str) -> str:
    """
    Return a text in which [`LOCAL`] stands for every path below a folder at this machine's root or of a user.

    Examples:

    ```python
    >>> without_paths("See https://example.org/home and `/v1/models`, trained in /usr/local/models.")
    'See https://example.org/home and `/v1/models`, trained in a local folder.'

    ```
    """

    def replaced(found: re.Match[str]) -> str:
        path, end = found.group().rstrip("."), "." if found.group().endswith(".") else ""
        parts = [part for part in re.split(r"[\\/]", path) if part]
        of_here = not path.startswith("/") or parts[0] in _USERS or (len(parts) > 1 and Path("/", parts[0]).is_dir())
        return LOCAL + end if of_here else found.group()

    return _PATH.sub(replaced, text)


# Where people keep files, on this machine or on one that a card was written on.
_USERS = {"home", "Users", "root", "tmp", "mnt", "scratch", "private"}
