"""Load what the commands need beside a policy: reward models, and what its checkpoint recommends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded"
EMBEDDED_TEMPERATURE = 0.7
"""Temperature at which a model of 135 million parameters is read with pleasure: at 1 it rambles."""


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
) -> Any:
    """
    Load one reward, or a list of them: an ensemble. `FILE.py:NAME` and `MODULE:NAME` are functions of the user's own,
    all others models. `label`, of the models, is a name or an index in digits.
    """
    from hf_itp.rewards import RewardModel
    from hf_itp.rewards.from_code import load_code, names_code

    # Functions first: they are found at once, or not.
    functions = {model_id: load_code(model_id) for model_id in model_ids if names_code(model_id)}
    models = [
        functions[model_id]
        if model_id in functions
        else RewardModel.from_pretrained(
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
