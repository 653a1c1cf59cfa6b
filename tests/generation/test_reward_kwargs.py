"""
Test `reward_kwargs`: columns of the data, which reach the reward with each prompt's candidates.
"""

from __future__ import annotations

import pandas as pd
import pytest

from hf_itp import ItpError, StrategyDecoding
from hf_itp.errors import ArgumentError
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

PROMPTS = ["first", "second", "third"]
SOLUTIONS = ["a", {"b": 1}, None]


class Recorder:
    """Reward that notes what came with each prompt."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, completions, solution, difficulty=None, **kwargs):
        for position, prompt in enumerate(prompts):
            self.seen.append((prompt, solution[position], None if difficulty is None else difficulty[position]))
        return [float(len(completion)) for completion in completions]


def run(model=None, **overrides):
    arguments = {
        **left_padded_batch([7, 5, 9]), "strategy": "best_of_n", "prompts": PROMPTS, "num_candidates": 4, "seed": 0,
        "max_new_tokens": 3, "tokenizer": tiny_tokenizer(), **overrides,
    }  # fmt: skip
    return (model or tiny_model("llama")).generate(**{k: v for k, v in arguments.items() if v is not None})


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("strategy", ["best_of_n", "pessimism"])
def test_each_candidate_comes_with_its_prompts_columns(strategy, batch_size):
    reward = Recorder()
    columns = {"solution": SOLUTIONS, "difficulty": pd.Series([1, 2, 3], index=[5, 5, 9])}
    run(
        reward_model=reward,
        reward_kwargs=columns,
        strategy=strategy,
        batch_size=batch_size,
        beta=2.0 if strategy == "pessimism" else None,
    )
    assert len(reward.seen) >= 12
    for prompt, solution, difficulty in reward.seen:
        row = PROMPTS.index(prompt)
        assert solution == SOLUTIONS[row] and difficulty == row + 1


def test_fresh_pools_and_early_rejection_keep_columns_aligned():
    for arguments in (
        {"strategy": "pessimism", "pool": "fresh", "beta": 0.5},
        {"early_rejection": 0.5, "max_new_tokens": 40},
    ):
        reward = Recorder()
        run(reward_model=reward, reward_kwargs={"solution": SOLUTIONS}, **arguments)
        assert {(prompt, str(solution)) for prompt, solution, _ in reward.seen} == {
            (prompt, str(solution)) for prompt, solution in zip(PROMPTS, SOLUTIONS, strict=True)
        }


def test_decoding_object_takes_them_too():
    by_keyword, by_object = Recorder(), Recorder()
    sequences = run(reward_model=by_keyword, reward_kwargs={"solution": SOLUTIONS})
    decoding = StrategyDecoding(
        "best_of_n", by_object, num_candidates=4, prompts=PROMPTS, seed=0, reward_kwargs={"solution": SOLUTIONS}
    )
    other = tiny_model("llama").generate(
        **left_padded_batch([7, 5, 9]), custom_generate=decoding, max_new_tokens=3, do_sample=True, top_k=0,
        tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    assert other.equal(sequences) and by_object.seen == by_keyword.seen


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        (None, "solution"),
        ({}, "solution"),
        ({"solutions": SOLUTIONS}, "solution"),
        ({"solution": SOLUTIONS[:2]}, r"one entry per input row \(3\), got 2"),
        ({"solution": "abc"}, "must be a list"),
        ({"solution": SOLUTIONS, "prompts": PROMPTS}, "'prompts', which a reward is passed anyway"),
        ({"solution": SOLUTIONS, "completions": PROMPTS}, "'completions'"),
        ([SOLUTIONS], "dict of columns by name"),
        ({3: SOLUTIONS}, "dict of columns by name"),
    ],
)
def test_column_that_is_missing_or_wrong_is_refused_before_anything_is_computed(columns, remedy):
    model, calls = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda *arguments: calls.append(1))
    with pytest.raises(ItpError, match=remedy):
        run(model, reward_model=Recorder(), reward_kwargs=columns)
    assert not calls


def test_column_that_is_too_long_is_refused():
    with pytest.raises(ArgumentError, match=r"must have one entry per input row \(3\), got 4"):
        run(reward_model=Recorder(), reward_kwargs={"solution": [*SOLUTIONS, "d"]})
