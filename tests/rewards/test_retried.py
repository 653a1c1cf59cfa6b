"""Test rewards that are asked again when they fail."""

from __future__ import annotations

import asyncio
import functools
import time

import pytest

from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning, NumberError
from hf_itp.rewards import RewardModel, as_reward_function, retried
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_tokenizer

again = functools.partial(pytest.warns, ItpWarning, match="Reward `judge` failed and is asked again in")


class Failing:
    """Judge that fails a number of times before it answers."""

    __name__ = "judge"

    def __init__(self, failures, error=None):
        self.failures, self.error, self.calls = failures, error or ConnectionError("busy"), 0

    def __call__(self, prompts, completions, answer=None, **kwargs):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return [None if answer is None else float(answer[0])] * len(completions)


class FailingLater(Failing):
    async def __call__(self, prompts, completions, answer=None, **kwargs):
        await asyncio.sleep(0)
        return super().__call__(prompts, completions, answer)


@pytest.mark.parametrize("kind", [Failing, FailingLater])
def test_judge_is_asked_again_until_it_answers(kind):
    judge = kind(2)
    with again():
        rewards = retried(judge, times=2, wait=0.0)(["how"], ["so"], answer=["3"])
    assert rewards.tolist() == [3.0] and judge.calls == 3


@pytest.mark.parametrize("kind", [Failing, FailingLater])
def test_its_own_error_is_raised_once_all_turns_are_used(kind):
    judge = kind(9)
    with again(), pytest.raises(ConnectionError, match="busy"):
        retried(judge, times=3, wait=0.0)(["how"], ["so"])
    assert judge.calls == 4


@pytest.mark.parametrize("kind", [Failing, FailingLater])
def test_other_errors_are_raised_at_once(kind):
    judge = kind(1, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        retried(judge, wait=0.0, on=(ConnectionError, TimeoutError))(["how"], ["so"])
    assert judge.calls == 1


def test_missing_column_is_not_asked_for_again():
    def needs_answer(prompts, completions, answer):
        return [0.0]

    with pytest.raises(ArgumentTypeError, match="needs `answer`"):
        retried(needs_answer)(["how"], ["so"])
    with pytest.raises(ArgumentTypeError, match="needs `answer`"):
        retried(needs_answer).check(["how"])


def test_waits_double():
    started = time.perf_counter()
    with again():
        retried(Failing(3), times=3, wait=0.05)(["how"], ["so"])
    assert time.perf_counter() - started >= 0.05 * (1 + 2 + 4)


def test_it_is_the_reward_it_wraps():
    model = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    wrapped = retried(model)
    assert wrapped.name == model.name and wrapped.model is model.model and wrapped.devices == model.devices
    assert wrapped(["how"], ["so"]).equal(model(["how"], ["so"]))
    assert retried(Failing(0)).takes("answer") and not wrapped.takes("answer")
    assert retried(Failing(0))(["how"], completions=["so"]) == [None]


def test_members_of_an_ensemble_are_asked_again_by_themselves():
    steady, failing = Failing(0), FailingLater(1)
    with again():
        rewards = as_reward_function([steady, retried(failing, wait=0.0)])(["how"], ["so"], answer=["2"])
    assert rewards.tolist() == [2.0] and (steady.calls, failing.calls) == (1, 2)


def test_nothing_is_left_unawaited_when_another_member_fails():
    with pytest.raises(ConnectionError):
        as_reward_function([retried(FailingLater(0)), Failing(1)])(["how"], ["so"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"times": 0}, ArgumentError, "`times` must be an integer of at least 1, got 0"),
        ({"times": 1.5}, NumberError, "`times` must be an integer"),
        ({"wait": -1}, ArgumentError, "`wait` must be at least 0, got -1"),
        ({"on": "ConnectionError"}, ArgumentTypeError, "`on` must be a kind of exception"),
        ({"on": ()}, ArgumentTypeError, "`on` must be a kind of exception"),
    ],
)
def test_options_that_break_their_rules_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        retried(Failing(0), **options)
