"""
Test what sampling relies on in transformers: `reorder_cache` expands and compacts a cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from tests.tiny import (
    ARCHITECTURES,
    STATE_OUTSIDE_CACHE,
    VISION_LANGUAGE,
    left_padded_batch,
    tiny_model,
    vision_batch,
)

pytestmark = pytest.mark.oldest

LENGTHS = [8, 11]
EXPANDED = torch.tensor([0, 0, 0, 1, 1, 1])
# The rows left of six once four have ended, in another order.
ALIVE = torch.tensor([4, 1])


def step(model: PreTrainedModel, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor:
    inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
    return advance(model, model(**inputs, return_dict=True), model_kwargs)


def advance(model: PreTrainedModel, outputs: ModelOutput, model_kwargs: dict[str, Any]) -> torch.Tensor:
    model_kwargs.update(
        model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
    )
    return outputs.logits[:, -1]


def reorder(model_kwargs: dict[str, Any], index: torch.Tensor, rows: int) -> None:
    """Reorder the cache and everything else with one entry per row; pictures are in the cache already."""
    for name, value in model_kwargs.items():
        if hasattr(value, "reorder_cache"):
            value.reorder_cache(index)
        elif isinstance(value, ModelOutput):
            model_kwargs[name] = type(value)(**{key: entry[index] for key, entry in value.items()})
        elif isinstance(value, torch.Tensor) and name == "position_ids" and value.dim() == 3:
            model_kwargs[name] = value[:, index]
        elif isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == rows:
            model_kwargs[name] = value[index]


def run(model, input_ids, generation_config, expand: bool, record: list[torch.Tensor], **model_kwargs) -> torch.Tensor:
    logits = advance(model, model._prefill(input_ids, generation_config, model_kwargs), model_kwargs)
    for index in (EXPANDED, ALIVE):
        if expand:
            reorder(model_kwargs, index, len(input_ids))
            input_ids, logits = input_ids[index], logits[index]
        for _ in range(2):
            input_ids = torch.cat([input_ids, logits.argmax(-1, keepdim=True)], dim=-1)
            logits = step(model, input_ids, model_kwargs)
            record.append(logits)
    return input_ids


def logits_of_steps(architecture: str, expand: bool) -> list[torch.Tensor]:
    record: list[torch.Tensor] = []

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        return run(model, input_ids, generation_config, expand, record, **model_kwargs)

    inputs = vision_batch(architecture, LENGTHS) if architecture in VISION_LANGUAGE else left_padded_batch(LENGTHS)
    tiny_model(architecture).generate(**inputs, custom_generate=decode, max_new_tokens=5)
    return record


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reorder_cache_expands_and_compacts(architecture: str) -> None:
    plain, expanded = (logits_of_steps(architecture, expand) for expand in (False, True))
    rows = [EXPANDED, EXPANDED, EXPANDED[ALIVE], EXPANDED[ALIVE]]
    difference = max(
        float((each - reference[index]).abs().max())
        for each, reference, index in zip(expanded, plain, rows, strict=True)
    )
    # Sums over another number of rows round differently; a wrong row is off by more than 1.
    assert (difference > 1e-3) == (architecture in STATE_OUTSIDE_CACHE)
