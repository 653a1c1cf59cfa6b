"""
Test that numpy's numbers and 0-dimensional tensors count as numbers, and what holds several of them as a list.
"""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

import hf_itp
from hf_itp import EarlyRejection, ItpError, RewardModel, StrategyDecoding, get_strategy
from hf_itp.calibration import RewardCalibrator
from hf_itp.checks import as_list, as_number
from hf_itp.functional import tradeoff
from hf_itp.functional.subsamples import best_of_n_subsample_law
from hf_itp.functional.transforms import get_transform
from hf_itp.generation.recommendation import decoding_entry
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

WHOLE = [np.int64(4), np.int32(4), np.uint8(4), torch.tensor(4), np.array(4), torch.tensor(4, dtype=torch.int32)]
NO_WHOLE = [
    True,
    np.bool_(True),
    torch.tensor(True),
    4.0,
    np.float64(4.0),
    "4",
    torch.tensor([4]),
    math.nan,
    4 + 0j,
    [4],
]
REAL = [
    np.float32(0.5),
    np.float64(0.5),
    np.float16(0.5),
    torch.tensor(0.5),
    np.array(0.5),
    torch.tensor(0.5).bfloat16(),
]
NO_REAL = [
    True,
    np.bool_(True),
    torch.tensor(True),
    np.nan,
    np.float32("inf"),
    torch.tensor(math.nan),
    "0.5",
    0.5 + 0j,
]


def described(value):
    return f"{type(value).__name__} {value}"


def calibrated(num_reference):
    return RewardCalibrator.fit(
        tiny_model("llama"), PromptBoundReward(), ["we mix flour"], num_reference=num_reference, max_new_tokens=2,
        tokenizer=tiny_tokenizer(),
    )  # fmt: skip


def reward_model(**options):
    return RewardModel(tiny_classifier("llama"), tiny_tokenizer(), **options)


# The argument to set, and how to read what became of it.
COUNTS = {
    "num_candidates": lambda n: StrategyDecoding("best_of_n", PromptBoundReward(), num_candidates=n).num_candidates,
    "num_return_sequences": lambda n: (
        StrategyDecoding("best_of_n", PromptBoundReward(), num_return_sequences=n).num_return_sequences
    ),
    "seed": lambda n: StrategyDecoding("best_of_n", PromptBoundReward(), seed=n).seed,
    "batch_size": lambda n: StrategyDecoding("best_of_n", PromptBoundReward(), batch_size=n).batch_size,
    "interval": lambda n: EarlyRejection(interval=n).interval,
    "transform n": lambda n: get_transform("best_of_n_optimal", n=n, beta=0.1).n,
    "recommended": lambda n: decoding_entry("best_of_n", n, None)["num_candidates"],
}
NUMBERS = {
    "beta": lambda x: get_strategy("pessimism", beta=x).beta,
    "reward_bound": lambda x: get_strategy("pessimism", reward_bound=x).reward_bound,
    "rate": lambda x: get_strategy("best_of_poisson", rate=x).rate,
    "temperature": lambda x: next(iter(get_strategy(*_soft(x)).settings().values())),
    "share": lambda x: EarlyRejection(share=x).share,
    "audit": lambda x: EarlyRejection(audit=x).audit,
    "transform beta": lambda x: get_transform("worst_of_n_optimal", n=2, beta=x).beta,
    "transform t": lambda x: get_transform("exponential", t=x).t,
    "recommended beta": lambda x: decoding_entry("pessimism", 4, None, fields={"beta": x})["beta"],
}


def _soft(value):
    [name] = hf_itp.strategies.SoftBestOfN.field_names()
    return [hf_itp.strategies.SoftBestOfN(**{name: value})]


@pytest.mark.parametrize("value", WHOLE, ids=described)
@pytest.mark.parametrize("where", COUNTS)
def test_whole_numbers_are_taken_and_become_plain_ones(where, value):
    assert type(COUNTS[where](value)) is int and COUNTS[where](value) == 4


@pytest.mark.parametrize("value", NO_WHOLE, ids=described)
@pytest.mark.parametrize("where", COUNTS)
def test_what_is_no_whole_number_is_refused(where, value):
    with pytest.raises(ItpError, match="must be an integer"):
        COUNTS[where](value)


@pytest.mark.parametrize("value", REAL, ids=described)
@pytest.mark.parametrize("where", NUMBERS)
def test_numbers_are_taken_and_become_plain_ones(where, value):
    assert type(NUMBERS[where](value)) is float and NUMBERS[where](value) == 0.5
    json.dumps(NUMBERS[where](value))


@pytest.mark.parametrize("value", NO_REAL, ids=described)
@pytest.mark.parametrize("where", [name for name in NUMBERS if name != "audit"])
def test_what_is_no_number_is_refused(where, value):
    with pytest.raises(ItpError):
        NUMBERS[where](value)


@pytest.mark.parametrize("value", [1, 0.5, -3])
def test_plain_numbers_stay_what_they_are(value):
    assert as_number(value) is value


def test_generate_takes_numpys_numbers_as_pythons():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    arguments = {
        "reward_model": PromptBoundReward(), "prompts": ["a", "b"], "tokenizer": tiny_tokenizer(), "max_new_tokens": 4,
        "strategy": "pessimism",
    }  # fmt: skip
    plain = model.generate(**batch, **arguments, num_candidates=4, num_return_sequences=2, seed=3, beta=0.5)
    numpys = model.generate(
        **batch, **arguments, num_candidates=np.int64(4), num_return_sequences=np.int32(2), seed=torch.tensor(3),
        beta=np.float32(0.5), batch_size=np.int64(3),
    )  # fmt: skip
    assert numpys.equal(plain)


def test_formulas_take_them_too():
    rewards = torch.tensor([[0.1, 0.7, 0.4, 0.2]])
    assert best_of_n_subsample_law(rewards, np.int64(2)).equal(best_of_n_subsample_law(rewards, 2))
    assert get_strategy("best_of_n").select(rewards, np.int64(4), torch.Generator()).shape == (1, 4)
    assert tradeoff.alignment_tradeoff("log", np.float32(0.5)).kl == tradeoff.alignment_tradeoff("log", 0.5).kl
    law = hf_itp.functional.pessimism(rewards, np.float32(0.5))[0]
    assert law.dtype == torch.float64 and law.equal(hf_itp.functional.pessimism(rewards, 0.5)[0])


def test_reward_models_options_are_numbers():
    plain, numpys = (
        reward_model(max_length=16, batch_size=2),
        reward_model(max_length=np.int64(16), batch_size=np.int32(2)),
    )
    prompts, responses = ["we mix"] * 3, ["yes", "no", "it is good"]
    assert type(numpys.batch_size) is int
    assert numpys(prompts, responses).equal(plain(prompts, responses))
    assert reward_model(label=torch.tensor(0)).label == 0
    for options in ({"max_length": True}, {"batch_size": True}, {"batch_size": 2.0}, {"label": True}, {"label": 0.0}):
        with pytest.raises(ItpError):
            reward_model(**options)


def test_calibrators_count_is_a_number():
    assert calibrated(np.int64(4)).reference_rewards.equal(calibrated(4).reference_rewards)
    with pytest.raises(ItpError, match="`num_reference` must be an integer of at least 2"):
        calibrated(True)


CHATS = [[{"role": "user", "content": text}] for text in ("one", "two")]
LISTS = {
    "tuple": tuple,
    "array": np.array,
    "Series": pd.Series,
    "Series of another index": lambda values: pd.Series(values, index=[7, 3]),
    "column": lambda values: datasets.Dataset.from_dict({"prompt": values})["prompt"],
    "arrow": lambda values: datasets.Dataset.from_dict({"prompt": values}).data["prompt"],
}


def seen(prompts, **arguments):
    reward = PromptBoundReward()
    tiny_model("llama").generate(
        **left_padded_batch([7, 5]), strategy="best_of_n", reward_model=reward, prompts=prompts, num_candidates=2,
        seed=0, max_new_tokens=2, tokenizer=tiny_tokenizer(), **arguments,
    )  # fmt: skip
    [(shown, _)] = reward.calls
    return shown[::2]


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("prompts", [["one", "two"], CHATS], ids=["texts", "chats"])
def test_prompts_may_come_as_any_list(kind, prompts):
    if kind == "array" and prompts is CHATS:
        given = np.array(prompts, dtype=object)  # of two dimensions, as equally long chats are
    else:
        given = LISTS[kind](prompts)
    shown = seen(given)
    assert shown == prompts
    assert all(type(prompt) in (str, list) for prompt in shown)


@pytest.mark.parametrize(
    "no_list",
    [pd.DataFrame({"one": ["a", "b"], "two": ["c", "d"]}), {"one": 1, "two": 2}, {"one", "two"}, "ab", np.array("ab")],
    ids=["table", "dict", "set", "text", "0-d"],
)
def test_what_is_no_list_is_refused(no_list):
    """Otherwise a table of two columns would be two prompts: the names of its columns."""
    assert as_list(no_list) is None
    with pytest.raises(ItpError, match="a list with one entry per input row"):
        seen(no_list)
