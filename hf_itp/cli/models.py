"""Load what the commands need beside a policy: reward models, and what its checkpoint recommends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hf_itp.rewards import RewardModel

EMBEDDED = "embedded"


def recommendation(model: Any) -> Any:
    """Return what a policy's checkpoint says about how to decode it, unchecked, or `None`."""
    from hf_itp.generation.recommendation import entry_of

    return entry_of(model)


def load_reward_models(
    model_ids: Sequence[str],
    *,
    device: torch.device | None = None,
    label: str | None = None,
    trust_remote_code: bool = False,
) -> RewardModel | list[RewardModel]:
    """Load one reward model, or a list of them: an ensemble. `label` is a name or an index in digits."""
    from hf_itp.rewards import RewardModel

    models = [
        RewardModel.from_pretrained(
            model_id,
            device=device,
            label=int(label) if label is not None and label.isdecimal() else label,
            trust_remote_code=trust_remote_code,
        )
        for model_id in model_ids
    ]
    return models[0] if len(models) == 1 else models


@contextmanager
def loading_bars(shown: bool) -> Iterator[None]:
    """Hide transformers' progress bars of downloads and weights inside, unless `shown`."""
    from transformers.utils import logging

    if shown or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
