"""
Load the reward model that a checkpoint recommends, at the commit it names, never silently another one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from huggingface_hub import model_info
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hf_itp.errors import ItpWarning, LoadError, RewardModelError
from hf_itp.rewards import RewardFunction, as_reward_function

# Limit of the request for the current commit, which loading does not need.
_SECONDS = 5.0


@dataclass(frozen=True)
class RecommendedReward:
    """
    A reward model by its name, not loaded yet.

    Args:
        name (`str`): Hub id, `"embedded"`, or a folder if the checkpoint is in one.
        revision (`str`, *optional*): Its commit when the checkpoint was pushed.
    """

    name: str
    revision: str | None = None

    def load(self, device: Any) -> RewardFunction:
        """
        Load the reward model, without running code from its repository; [`as_reward_function`] caches it.

        Raises:
            `LoadError`: If it is missing, gated, rewritten or cannot be read; says which.
            `RewardModelError`: If it is not a reward model, or brings its own code.
        """
        options: dict[str, Any] = {} if self.revision is None else {"revision": self.revision}
        remedy = "Pass reward_model=... to score with another one."
        where = self.name if self.revision is None else f"{self.name} at revision {self.revision:.40}"
        try:
            # Only safetensors: a stranger who recommends a file must not choose one that is unpickled.
            reward = as_reward_function(self.name, device=device, use_safetensors=True, **options)
        except RewardModelError as error:
            raise RewardModelError(
                f"The checkpoint recommends the reward model {where}, which cannot be used as it is: {error} {remedy}"
            ) from error
        except LoadError as error:
            reason = _reason(error, self.name)
            raise LoadError(f"The checkpoint recommends the reward model {where}, which {reason} {remedy}") from error
        if self.revision is not None and (now := _current_commit(self.name)) not in (None, self.revision):
            warnings.warn(
                f"The reward model {self.name} has changed since the checkpoint was pushed: it is at {now:.7} now, "
                f"and {self.revision:.7} is used. Pass reward_model={self.name!r} for the newer one.",
                ItpWarning,
                stacklevel=2,
            )
        return reward


def _reason(error: BaseException, name: str) -> str:
    seen = []
    cause: BaseException | None = error
    while cause is not None:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {
        GatedRepoError: f"is gated. Ask for access at https://huggingface.co/{name} and log in with `hf auth login`.",
        RevisionNotFoundError: "is no longer there: its history was rewritten.",
        RepositoryNotFoundError: "is missing, or private.",
    }
    for kind, reason in kinds.items():
        if any(isinstance(found, kind) for found in seen):
            return reason
    return f"could not be loaded: {error}"


# One request per process is enough.
@lru_cache(maxsize=32)
def _current_commit(name: str) -> str | None:
    try:
        return model_info(name, timeout=_SECONDS).sha
    except (HTTPError, OSError, ValueError):
        # Offline, or the access was withdrawn while the cache still holds the files: nothing to compare with.
        return None
