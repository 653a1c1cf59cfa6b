"""The result for one prompt as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_itp.cli.streams import can_write

if TYPE_CHECKING:
    from hf_itp.generation.output import StrategyOutput
    from hf_itp.rewards.base import Prompt


def record_of(
    output: StrategyOutput,
    row: int,
    prompt: Prompt,
    decode: Callable[[Any], str],
    *,
    all_candidates: bool = False,
) -> dict[str, Any]:
    """
    Return one prompt of a [`StrategyOutput`] as plain values: `prompt`, `responses`, `rewards`, the `probabilities`
    each had of being returned first (`None` if not known), `finish_reasons`, `num_tokens`, `diagnostics`, and on
    request all `candidates`.
    """
    assert output.selected is not None and output.candidate_rewards is not None
    assert output.candidates is not None and output.diagnostics is not None and output.finish_reasons is not None
    selected = output.selected[row].tolist()
    rewards = output.candidate_rewards[row].tolist()
    law = [None] * len(rewards) if output.probabilities is None else output.probabilities[row].tolist()
    pool, reasons = output.candidates[row], output.finish_reasons[row]
    record = {
        "prompt": prompt,
        "responses": [decode(pool[index]) for index in selected],
        "rewards": [rewards[index] for index in selected],
        "probabilities": [law[index] for index in selected],
        "finish_reasons": [reasons[index] for index in selected],
        "num_tokens": [len(pool[index]) for index in selected],
        "diagnostics": {
            name: _of_row(value, row, len(output.candidates)) for name, value in output.diagnostics.items()
        },
    }
    if all_candidates:
        record["candidates"] = [
            {
                "response": decode(ids),
                "reward": reward,
                "probability": probability,
                "num_tokens": len(ids),
                "finish_reason": reason,
            }
            for ids, reward, probability, reason in zip(pool, rewards, law, reasons, strict=False)
        ]
    return record


def to_json(value: Any, indent: int | None = None, encoding: str | None = None) -> str:
    """
    Return strict JSON: `null` for NaN and infinities, letters of every script as they are, or as escapes if the
    `encoding` it is written in lacks one of them.
    """
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    if can_write(text, encoding):
        return text
    return json.dumps(finite(value), ensure_ascii=True, allow_nan=False, indent=indent)


def _of_row(value: Any, row: int, num_rows: int) -> Any:
    """Return a diagnostic of one prompt: its entry if there is one per prompt, else the value for the whole call."""
    if isinstance(value, Mapping):
        return {name: _of_row(entry, row, num_rows) for name, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value[row] if value.ndim > 0 and len(value) == num_rows else value
        return value.tolist()
    return value[row] if isinstance(value, list) and len(value) == num_rows else value


def finite(value: Any) -> Any:
    """Return a value for JSON: `None` for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value
