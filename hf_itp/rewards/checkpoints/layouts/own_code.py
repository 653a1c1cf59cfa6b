"""Checkpoints that bring their model class: ArmoRM, QRM, internlm2-reward and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers

from hf_itp.errors import RewardModelError
from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, Layout


def layout(checkpoint: Checkpoint, loaders: Sequence[Any], trust_remote_code: bool) -> Layout | None:
    """
    Return the layout of a checkpoint that must run its own code, `None` for any other.

    Args:
        checkpoint ([`Checkpoint`]): Its description.
        loaders (`Sequence[type]`):
            Auto classes to look for, the best first: many checkpoints also register their body as the plain model.
        trust_remote_code (`bool`): Whether its code may run.

    Raises:
        `RewardModelError`: If the caller does not allow the code to run.
    """
    loader = next((loader for loader in loaders if loader.__name__ in checkpoint.code), None)
    if loader is None or (loader is transformers.AutoModel and hasattr(transformers, checkpoint.architecture)):
        return None
    if not trust_remote_code:
        raise RewardModelError(
            f"Reward model '{checkpoint.name}' brings code of its own, which does not run by default. Read that code, "
            "then pass `trust_remote_code=True`."
        )
    return Layout(loader, {"trust_remote_code": True})
