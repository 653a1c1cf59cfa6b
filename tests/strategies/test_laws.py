"""
Test strategies of other packages that break their contract: an error names the prompt, and nothing is selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from hf_itp import ItpError
from hf_itp.errors import StrategyError
from hf_itp.strategies import Strategy
from tests.strategies.instances import STRATEGIES
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Uniform(Strategy):
    """Good strategy, whose law the others break."""

    name: ClassVar[str] = "uniform"

    def probabilities(self, rewards):
        return torch.full(rewards.shape, 1 / rewards.shape[-1], dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(0)


def changed(law, rewards, row):
    """Return a good law except for one row: that of the pool whose first reward is `row`."""
    good = Uniform().probabilities(rewards)
    return torch.where(rewards[..., :1] == row, law(good), good)


def negative(good):
    bad = good.clone()
    bad[..., 0], bad[..., 1] = -0.5, good[..., 1] + good[..., 0] + 0.5
    return bad


def not_a_number(good):
    bad = good.clone()
    bad[..., 0] = torch.nan
    return bad


LAWS = {
    "sums to 2": lambda good: 2 * good,
    "sums to 0": lambda good: 0 * good,
    "negative": negative,
    "NaN": not_a_number,
}
SHAPES = {
    "one less": lambda good: good[..., 1:] * 2,
    "summed": lambda good: good.sum(-1),
    "a list": lambda good: good.tolist(),
    "bools": lambda good: good > 0,
}


def strategy_with(probabilities=None, **methods):
    namespace = {"name": "theirs", **methods}
    if probabilities is not None:
        namespace["probabilities"] = probabilities
    return dataclass(frozen=True)(type("Theirs", (Uniform,), namespace))()


@pytest.mark.parametrize("law", LAWS)
def test_row_that_is_no_law_is_named(law):
    strategy = strategy_with(lambda self, rewards: changed(LAWS[law], rewards, 7.0))
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    with pytest.raises(StrategyError, match=r"got a sum of .* for prompt 2") as caught:
        strategy.select(rewards, 1, seeded())
    assert isinstance(caught.value, ItpError) and isinstance(caught.value, ValueError)
    with pytest.raises(StrategyError, match="for prompt 2"):
        strategy.diagnostics(rewards)
    assert strategy.select(rewards[:2], 1, seeded()).shape == (2, 1)


@pytest.mark.parametrize("law", SHAPES)
def test_law_of_another_form_is_refused(law):
    strategy = strategy_with(lambda self, rewards: SHAPES[law](Uniform().probabilities(rewards)))
    with pytest.raises(StrategyError, match="Return one probability per candidate"):
        strategy.select(torch.rand(3, 4, generator=seeded()))


def test_rows_of_later_portions_have_their_own_numbers():
    """There are more pools than are worked on at once."""
    rewards = torch.zeros(300, 1_000)
    rewards[277, 0] = 7
    strategy = strategy_with(lambda self, rewards: changed(LAWS["sums to 2"], rewards, 7.0))
    with pytest.raises(StrategyError, match="for prompt 277"):
        strategy.select(rewards, 1, seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_fault(dtype):
    strategy = strategy_with(lambda self, rewards: (rewards * 30).to(dtype).softmax(-1))
    rewards = torch.rand(50, 1_000, generator=seeded())
    assert strategy.select(rewards, 3, seeded()).shape == (50, 3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_our_own_laws_pass(name):
    rewards = torch.rand(20, 9, generator=seeded()).mul(0.8)
    STRATEGIES[name].select(rewards.mul(1e-6), 2, seeded())


def generate(strategy, **arguments):
    return tiny_model("llama").generate(
        **left_padded_batch([7, 5, 9]), strategy=strategy, reward_model=PromptBoundReward(), prompts=["a", "b", "c"],
        num_candidates=4, max_new_tokens=3, seed=0, tokenizer=tiny_tokenizer(), **arguments,
    )  # fmt: skip


def from_second_on(indices):
    """Return a `decide` that is right only for the first prompt it is asked about."""
    asked = []

    def decide(self, rewards, num_candidates, num_return_sequences=1, generator=None):
        asked.append(1)
        return torch.tensor([0]) if len(asked) == 1 else indices

    return decide


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([4]),
        torch.tensor([-1]),
        torch.tensor([0, 1]),
        torch.tensor([[0]]),
        torch.tensor([0.0]),
        torch.tensor([True]),
        [0],
        3,
    ],
)
def test_selected_index_of_no_candidate_is_an_error_that_names_the_prompt(indices):
    with pytest.raises(StrategyError, match=r"got .* for prompt 1. Correct its `select`"):
        generate(strategy_with(decide=from_second_on(indices)))


def test_candidate_returned_twice_is_an_error():
    strategy = strategy_with(decide=lambda self, rewards, *arguments: torch.tensor([2, 2]))
    with pytest.raises(StrategyError, match="2 different indices from 0 to 3"):
        generate(strategy, num_return_sequences=2)


@pytest.mark.parametrize("return_dict", [False, True])
def test_generate_names_the_prompt_whose_law_is_none(return_dict):
    def probabilities(self, rewards):
        return Uniform().probabilities(rewards) * torch.tensor([[1.0], [2.0], [1.0]])

    with pytest.raises(StrategyError, match=r"got a sum of .* for prompt 1"):
        generate(strategy_with(probabilities), return_dict_in_generate=return_dict)


def test_law_that_is_only_reported_is_checked_as_well():
    strategy = strategy_with(
        lambda self, rewards: 2 * Uniform().probabilities(rewards),
        decide=lambda self, rewards, *arguments: torch.tensor([0]),
    )
    assert generate(strategy).shape[0] == 3
    with pytest.raises(StrategyError, match="for prompt 0"):
        generate(strategy, return_dict_in_generate=True)


def test_strategy_that_never_decides_is_an_error_and_no_endless_loop():
    strategy = strategy_with(
        decide=lambda self, rewards, *arguments: None,
        num_extra_candidates=lambda self, num_candidates, num_return_sequences: 3,
    )
    with pytest.raises(StrategyError, match="got a call for more for prompt 0"):
        generate(strategy)
