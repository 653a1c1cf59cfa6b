"""Test that a judge that fails loses nothing that was drawn, and that no streamer is left waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

import hf_itp
from hf_itp import ItpError, ItpWarning, ScoringError, StrategyDecoding
from hf_itp.rewards import CallableReward, retried
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

PROMPTS = ["first", "second"]


class Failing(PromptBoundReward):
    """Judge that fails in some of its calls."""

    def __init__(self, *failures):
        super().__init__()
        self.failures, self.asked = failures, 0

    def __call__(self, prompts, completions, **kwargs):
        self.asked += 1
        if self.asked - 1 in self.failures:
            raise ConnectionError("the judge is down")
        return super().__call__(prompts, completions)


def generated(reward, model=None, lengths=(7, 5), **overrides):
    arguments = {
        **left_padded_batch(lengths), "strategy": "best_of_n", "prompts": PROMPTS[: len(lengths)], "num_candidates": 5,
        "seed": 0, "max_new_tokens": 4, "tokenizer": tiny_tokenizer(), "reward_model": reward,
        "return_dict_in_generate": True, **overrides,
    }  # fmt: skip
    return (model or tiny_model("llama")).generate(**arguments)


def lists(pools):
    return [[ids.tolist() for ids in pool] for pool in pools]


@pytest.mark.parametrize("batch_size", [None, 3])
def test_error_carries_what_was_drawn_so_that_it_can_be_scored_again(batch_size):
    expected = generated(PromptBoundReward())
    with pytest.raises(ScoringError, match=r"`error.candidates` again") as raised:
        generated(Failing(0), batch_size=batch_size)
    error = raised.value
    assert isinstance(error.__cause__, ConnectionError) and "the judge is down" in str(error)
    assert lists(error.candidates) == lists(expected.candidates)
    reward, tokenizer = CallableReward(PromptBoundReward()), tiny_tokenizer()
    rewards = torch.stack([
        reward([prompt] * 5, [tokenizer.decode(ids, skip_special_tokens=True) for ids in pool])
        for prompt, pool in zip(PROMPTS, error.candidates, strict=True)
    ])  # fmt: skip
    assert rewards.equal(expected.candidate_rewards)
    assert rewards.argmax(dim=-1).equal(expected.selected[:, 0])


@pytest.mark.filterwarnings("ignore:`beta`")
def test_failure_on_further_candidates_carries_the_first_too():
    settings = {"strategy": "pessimism", "pool": "fresh", "beta": 1e-3}
    expected = generated(PromptBoundReward(), **settings)
    with pytest.raises(ScoringError) as raised:
        generated(Failing(1), **settings)
    for drawn, all_drawn in zip(lists(raised.value.candidates), lists(expected.candidates), strict=True):
        assert len(drawn) > 5 and drawn == all_drawn[: len(drawn)]


def test_failure_in_a_review_carries_what_was_written():
    with pytest.raises(ScoringError) as raised:
        generated(Failing(1), early_rejection=hf_itp.EarlyRejection(0.4, interval=3), max_new_tokens=30)
    assert all(len(pool) > 0 for pool in raised.value.candidates)


def test_judge_that_fails_once_is_asked_again():
    reward = Failing(0)
    with pytest.warns(ItpWarning, match="is asked again"):
        output = generated(retried(reward, wait=0.0))
    assert output.selected.equal(generated(PromptBoundReward()).selected) and reward.asked == 2


def test_asynchronous_verifiers_are_awaited_at_once_inside_a_running_loop():
    """As in a notebook. Each judge waits until the other has begun."""
    begun = []

    def judge(weight):
        async def verify(prompts, completions, solution, **kwargs):
            begun.append(weight)
            for _ in range(2000):
                if set(begun) == {1.0, 3.0}:
                    return [
                        None if text == "" else weight * len(one)
                        for text, one in zip(completions, solution, strict=True)
                    ]
                await asyncio.sleep(0.005)
            raise TimeoutError("was alone")

        return verify

    async def notebook():
        return generated([judge(1.0), judge(3.0)], reward_kwargs={"solution": ["ab", "abcd"]})

    output = asyncio.run(notebook())
    known = output.candidate_rewards[~output.candidate_rewards.isnan()]
    assert set(known.tolist()) == {4.0, 8.0}


def test_what_a_reward_logs_is_in_the_diagnostics():
    class Logs(PromptBoundReward):
        def __call__(self, prompts, completions, log_metric, log_extra, **kwargs):
            rewards = super().__call__(prompts, completions)
            log_metric("batch", float(len(completions)))
            log_extra("doubled", [2 * reward for reward in rewards])
            return rewards

    for settings in ({}, {"batch_size": 3}, {"early_rejection": 0.5, "max_new_tokens": 40}):
        output = generated(Logs(), **settings)
        log = output.diagnostics["reward_log"]
        expected = (2 * output.candidate_rewards).tolist()
        assert [list(map(float, row)) for row in log["extra"]["doubled"]] == expected
        assert log["metrics"]["batch"] > 0
    assert generated(Logs()).diagnostics["reward_log"]["metrics"] == {"batch": 10.0}
    assert "reward_log" not in generated(PromptBoundReward()).diagnostics


def test_log_of_another_length_is_an_error_that_says_so():
    def logs(prompts, completions, log_extra):
        log_extra("verdict", ["right"])
        return [0.0] * len(completions)

    with pytest.raises(ScoringError, match=r"`log_extra` must get a list with one value per completion \(10\)"):
        generated(logs)


def test_state_of_a_trainer_is_refused_by_name_before_drawing():
    def scheduled(prompts, completions, trainer_state, **kwargs):
        return [0.0] * len(completions)

    model, calls = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda *arguments: calls.append(1))
    with pytest.raises(ItpError, match=r"needs `trainer_state`.*`trainer_state=None`"):
        generated(scheduled, model)
    assert not calls

    def optional(prompts, completions, trainer_state=None, **kwargs):
        assert trainer_state is None
        return [0.0] * len(completions)

    assert generated(optional).rewards.tolist() == [[0.0], [0.0]]


FAILURES = {
    "reward": {"reward_model": Failing(0, 1, 2)},
    "too few rewards": {"reward_model": lambda prompts, completions, **kwargs: [None] * len(completions)},
    "argument of ours": {"num_candidates": 0},
    "strategy": {"strategy": "besst_of_n"},
    "argument of transformers": {"max_new_tokens": -1},
    "unknown keyword": {"surprise": 1},
    "policy": {"logits_processor": [lambda ids, scores: 1 / 0]},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_consumer_of_a_streamer_is_not_left_waiting(failure):
    streamer = TextIteratorStreamer(tiny_tokenizer(), skip_prompt=True, timeout=120)
    raised = []

    def produce():
        try:
            generated(PromptBoundReward(), lengths=(7,), streamer=streamer, **FAILURES[failure])
        except Exception as error:
            raised.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    assert "".join(streamer) == ""
    producer.join(timeout=120)
    assert len(raised) == 1 and streamer.text_queue.empty(), "ended once, so that it can be used again"


@pytest.mark.parametrize("enabled", [True, False])
def test_streamer_of_a_decoding_object_is_ended_too(enabled):
    ends = []

    class Ends(TextStreamer):
        def end(self):
            ends.append(1)

    streamer = Ends(tiny_tokenizer())
    decoding = StrategyDecoding(
        "best_of_n",
        Failing(0),
        tokenizer=tiny_tokenizer(),
        num_candidates=3,
        prompts=PROMPTS[:1],
        streamer=streamer,
        seed=0,
    )
    if not enabled:
        hf_itp.disable()
    try:
        with pytest.raises(ScoringError):
            tiny_model("llama").generate(
                **left_padded_batch([7]), custom_generate=decoding, max_new_tokens=3, do_sample=True, top_k=0,
            )  # fmt: skip
    finally:
        hf_itp.enable()
    assert ends == [1]
