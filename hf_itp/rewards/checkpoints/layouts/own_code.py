"""Checkpoints whose model class comes with them: ArmoRM, QRM, internlm2-reward and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers

from hf_itp.errors import RewardModelError
from hf_itp.rewards.checkpoints.checkpoint import Checkpoint
from hf_itp.rewards.checkpoints.layouts.base import Layout


def layout(checkpoint: Checkpoint, loaders: Sequence[Any], trust_remote_code: bool) -> Layout | None:
    """
    Args:
        checkpoint ([`Checkpoint`]): What it says of itself.
        loaders (`Sequence[type]`):
            Auto classes that would do, the best first: many checkpoints also register their body as the plain model.
        trust_remote_code (`bool`): Whether its code may run.

    Raises:
        `RewardModelError`: If the code would have to run and the caller does not allow it.
    """
    loader = next((loader for loader in loaders if loader.__name__ in checkpoint.code), None)
    if loader is None or (loader is transformers.AutoModel and hasattr(transformers, checkpoint.architecture)):
        return None
    if not trust_remote_code:
        raise RewardModelError(
            f"Reward model '{checkpoint.name}' brings code of its own, which is not run unasked. Read that code, then "
            "pass `trust_remote_code=True`."
        )
    return Layout(loader, {"trust_remote_code": True})
