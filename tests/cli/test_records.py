"""Test the JSON of one prompt's result."""

from __future__ import annotations

import json

import pytest
import torch

from hf_itp.cli.records import record_of, to_json
from hf_itp.generation.output import StrategyOutput

OUTPUT = StrategyOutput(
    candidates=[[torch.tensor([5]), torch.tensor([6, 7])], [torch.tensor([8]), torch.tensor([9])]],
    candidate_rewards=torch.tensor([[0.5, 2.0], [1.0, -1.0]]),
    probabilities=torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64),
    selected=torch.tensor([[1, 0], [0, 1]]),
    diagnostics={
        "path": "expanded",
        "num_tokens": torch.tensor([[1, 2], [1, 1]]),
        "normalizer": torch.tensor([0.1, float("nan")], dtype=torch.float64),
        "seconds": {"sampling": 0.5},
    },
    finish_reasons=[["length", "stop"], ["stop", "stop"]],
)


def as_words(ids: torch.Tensor) -> str:
    return " ".join(map(str, ids.tolist()))


def test_record_holds_the_row_of_its_prompt_in_the_order_selected():
    record = record_of(OUTPUT, 0, "how", as_words)
    assert record == {
        "prompt": "how",
        "responses": ["6 7", "5"],
        "rewards": [2.0, 0.5],
        "probabilities": [0.75, 0.25],
        "finish_reasons": ["stop", "length"],
        "num_tokens": [2, 1],
        "diagnostics": {
            "path": "expanded",
            "num_tokens": [1, 2],
            "normalizer": pytest.approx(0.1),
            "seconds": {"sampling": 0.5},
        },
    }


def test_all_candidates_come_in_the_order_drawn():
    candidates = record_of(OUTPUT, 1, "how", as_words, all_candidates=True)["candidates"]
    assert candidates[0] == {
        "response": "8",
        "reward": 1.0,
        "probability": 1.0,
        "num_tokens": 1,
        "finish_reason": "stop",
    }
    assert [candidate["response"] for candidate in candidates] == ["8", "9"]


def test_unknown_probability_and_nan_are_null():
    output = StrategyOutput(**{**OUTPUT, "probabilities": None})
    record = json.loads(to_json(record_of(output, 1, "how", as_words)))
    assert record["probabilities"] == [None, None]
    assert record["diagnostics"]["normalizer"] is None


def test_letters_of_every_script_stay_readable():
    assert to_json({"prompt": "naïve 水"}) == '{"prompt": "naïve 水"}'
