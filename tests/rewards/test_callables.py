"""Test plain functions in TRL's signature: what they are passed, and which are refused."""

from __future__ import annotations

import functools

import pytest
import torch

from hf_itp.errors import ArgumentTypeError
from hf_itp.rewards import CallableReward

CHAT = [{"role": "user", "content": "how"}]


class Recorder:
    """Reward that keeps the keywords of its last call."""

    def __call__(self, **keywords):
        self.keywords = keywords
        return [0.0] * len(keywords["completions"])


def test_text_prompts_come_with_text_completions():
    recorder = Recorder()
    CallableReward(recorder)(["how", "see"], ["so", "yes"])
    assert recorder.keywords == {"prompts": ["how", "see"], "completions": ["so", "yes"]}


def test_chats_come_with_completions_that_are_assistant_messages():
    recorder = Recorder()
    CallableReward(recorder)([CHAT, CHAT], ["so", "yes"])
    assert recorder.keywords == {
        "prompts": [CHAT, CHAT],
        "completions": [[{"role": "assistant", "content": "so"}], [{"role": "assistant", "content": "yes"}]],
    }


def test_completion_ids_are_lists_of_ints_where_known():
    recorder = Recorder()
    CallableReward(recorder)(["how"] * 2, ["so", "yes"], [torch.tensor([4, 5]), torch.tensor([6])])
    assert recorder.keywords["completion_ids"] == [[4, 5], [6]]


def test_completion_ids_are_kept_from_functions_that_do_not_take_them():
    def brevity(prompts, completions):
        return [-float(len(completion)) for completion in completions]

    assert CallableReward(brevity)(["how"], ["so"], [torch.tensor([4])]).tolist() == [-2.0]


def test_completion_ids_reach_a_function_that_names_them():
    def token_count(prompts, completions, completion_ids):
        return [float(len(ids)) for ids in completion_ids]

    assert CallableReward(token_count)(["how"], ["so"], [torch.tensor([4, 5, 6])]).tolist() == [3.0]


def test_function_that_empties_its_prompts_does_not_empty_the_callers():
    def popping(prompts, completions, **kwargs):
        return [float(len(prompt.pop()["content"])) for prompt in prompts]

    chat = [dict(CHAT[0])]
    assert CallableReward(popping)([chat], ["so"]).tolist() == [3.0]
    assert chat == CHAT


def test_bound_arguments_make_a_function_fit():
    def matches(prompts, completions, answer, **kwargs):
        return [float(completion == answer) for completion in completions]

    reward = CallableReward(functools.partial(matches, answer="yes"))
    assert reward(["how"] * 2, ["so", "yes"]).tolist() == [0.0, 1.0]
    assert reward.name == "matches"


def test_name_is_that_of_the_function_or_its_class():
    def brevity(prompts, completions):
        return []

    assert CallableReward(brevity).name == "brevity"
    assert CallableReward(Recorder()).name == "Recorder"


def test_error_of_the_function_stays_its_own():
    def broken(prompts, completions, **kwargs):
        raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError, match="in the user's code"):
        CallableReward(broken)(["how"], ["so"])


def without_prompts(completions):
    return [0.0]


def needs_answer(prompts, completions, answer, **kwargs):
    return [0.0]


def positional_only(prompts, completions, /):
    return [0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without_prompts, r"got no `prompts`. Define it as f\(prompts, completions, \*\*kwargs\)"),
        (positional_only, r"got no `prompts` and no `completions`. Define it as"),
        (3, "Pass a function f"),
    ],
)
def test_function_that_could_not_be_called_is_refused_at_once(function, message):
    with pytest.raises(ArgumentTypeError, match=message):
        CallableReward(function)


@pytest.mark.parametrize("function", [needs_answer, functools.partial(needs_answer, extra=1)])
def test_column_nobody_passes_is_named_before_anything_is_drawn(function):
    reward = CallableReward(function)
    with pytest.raises(ArgumentTypeError, match=r"needs `answer`.*reward_kwargs=\{'answer': \[\.\.\.\]\}.*data set"):
        reward.check(["how"])
    with pytest.raises(ArgumentTypeError, match="needs `answer`"):
        reward(["how"], ["so"])
    reward.check(["how"], answer=["yes"])


def needs_state(prompts, completions, trainer_state, **kwargs):
    return [0.0] * len(completions)


def test_state_that_only_a_trainer_has_is_asked_for_by_name():
    reward = CallableReward(needs_state)
    with pytest.raises(ArgumentTypeError, match=r"needs `trainer_state`.*only a trainer.*`trainer_state=None`"):
        reward.check(["how"])
    reward.check(["how"], trainer_state=object())
    assert reward(["how"], ["so"], trainer_state=object()).tolist() == [0.0]
