"""
Test lm-evaluation-harness with a strategy in its own `hf` model: its stop strings end each candidate by itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import StoppingCriteriaList

from tests.sampling.drawing import draw
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "lm_eval_run.py"

pytest.importorskip("lm_eval", reason="the harness is in the extra `dev`")


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_its_stop_strings_end_each_candidate_on_its_own(num_prompts):
    """Right is the text written without stop strings, cut after the first stop string in it."""
    # Imported here: its warnings are errors anywhere else.
    from lm_eval.models.utils_hf import stop_sequences_criteria

    tokenizer = tiny_tokenizer()
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9][:num_prompts])
    length = batch["input_ids"].shape[1]
    stops = [tokenizer.decode([token]) for token in (20, 33)]
    settings = {"max_new_tokens": 25, "temperature": 1e6}
    free, _ = draw(model, batch, 6, **settings)
    criteria = stop_sequences_criteria(tokenizer, stops, length, num_prompts)
    ended, _ = draw(model, batch, 6, stopping_criteria=StoppingCriteriaList(criteria), **settings)

    def cut(response):
        for n in range(1, len(response) + 1):
            # The harness looks back at as many tokens as the stop string has, and two.
            if any(stop in tokenizer.decode(response[max(0, n - 3) : n]) for stop in stops):
                return response[:n]
        return response

    expected = [[cut(response) for response in pool] for pool in free]
    assert (
        sum(a != b for pool, other in zip(expected, free, strict=True) for a, b in zip(pool, other, strict=True)) > 1
    )
    assert ended == expected


@pytest.mark.slow
def test_the_example_scores_with_and_without_a_strategy():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLE), "--limit", "2", "--num_candidates", "2"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    ways = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert [line.split('"')[3] for line in ways] == ["greedy", "sampled", "best_of_n", "pessimism"]
