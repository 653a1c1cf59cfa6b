"""Test rewards computed on another device than the policy's: each batch is scored while the next one is drawn."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_itp.calibration import CalibratedReward, RewardCalibrator
from hf_itp.errors import ScoringError
from hf_itp.rewards import CallableReward, RewardEnsemble, RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

ELSEWHERE = frozenset({torch.device("cuda", 7)})
NUM_TOKENS = 5


class FirstBatchWaits(CallableReward):
    """Reward that waits with its first batch until an event happens, and notes whether it did."""

    def __init__(self, until: threading.Event, devices: frozenset[torch.device]):
        super().__init__(PromptBoundReward())
        self._until, self._devices = until, devices
        self.waited: list[bool] = []

    @property
    def devices(self):
        return self._devices

    def score(self, prompts, responses, response_ids=None):
        self.waited.append(self._until.wait(timeout=200 if not self.waited else 0))
        return super().score(prompts, responses, response_ids)


class SecondBatchBegins(StoppingCriteria):
    rowwise = True

    def __init__(self):
        self.steps, self.event = 0, threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        self.steps += 1
        if self.steps > NUM_TOKENS:
            self.event.set()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generated(reward, criterion=None, **options):
    return tiny_model("llama").generate(
        **left_padded_batch([7, 5, 6]), strategy="best_of_n", reward_model=reward, prompts=["a", "b", "c"],
        tokenizer=tiny_tokenizer(), num_candidates=4, seed=3, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS,
        batch_size=4, return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([criterion] if criterion else []), **options,
    )  # fmt: skip


def test_first_batch_is_scored_while_the_second_is_drawn():
    criterion = SecondBatchBegins()
    reward = FirstBatchWaits(criterion.event, ELSEWHERE)
    output = generated(reward, criterion)
    assert reward.waited == [True, True, True], "scored before the second batch began, or not by itself"
    plain = generated(PromptBoundReward())
    assert output.sequences.equal(plain.sequences) and output.candidate_rewards.equal(plain.candidate_rewards)


def test_on_one_device_all_is_scored_at_once():
    done = threading.Event()
    done.set()
    reward = FirstBatchWaits(done, frozenset({torch.device("cpu")}))
    generated(reward)
    assert len(reward.waited) == 1


def test_error_of_the_reward_is_raised_from_the_call():
    class Broken(CallableReward):
        devices = ELSEWHERE

        def score(self, prompts, responses, response_ids=None):
            raise ZeroDivisionError("broken")

    with pytest.raises(ScoringError, match="ZeroDivisionError: broken") as raised:
        generated(Broken(PromptBoundReward()))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    # All was drawn, although the first batch had failed by then.
    drawn = generated(PromptBoundReward()).candidates
    assert [[ids.tolist() for ids in pool] for pool in raised.value.candidates] == [
        [ids.tolist() for ids in pool] for pool in drawn
    ]


def test_rewards_say_where_they_compute():
    model = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    cpu = frozenset({torch.device("cpu")})
    unknown = CallableReward(lambda prompts, completions, **kwargs: [0.0] * len(prompts))
    assert model.devices == cpu and RewardEnsemble([model, model]).devices == cpu
    assert unknown.devices == RewardEnsemble([model, unknown]).devices == frozenset()
    calibrator = RewardCalibrator(["a"], torch.tensor([[0.0, 1.0]]))
    assert CalibratedReward(model, calibrator).devices == cpu
