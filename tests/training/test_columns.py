"""Test that columns of the data reach a reward, whether CTRLTrainer or TRL's own trainers call it."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from hf_itp import CTRLArguments, CTRLTrainer, RewardCalibrator
from hf_itp.calibration.calibrated_reward import CalibratedReward
from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardError
from hf_itp.rewards import CallableReward, ProcessRewardModel, RewardEnsemble, RewardFunction, RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
ANSWERS = ["bread flour salt", "salt water"]
pytestmark = [pytest.mark.oldest, pytest.mark.uses_global_rng]  # transformers' Trainer seeds it
SETTINGS = {
    "max_completion_length": 4, "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4,
    "learning_rate": 1e-3, "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
    "save_strategy": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def data(prompts):
    return Dataset.from_dict(
        {"prompt": list(prompts) * 4, "answer": ANSWERS * 4, "responses": ["a column", "too"] * 4}
    )


def words_of(completion):
    text = completion if isinstance(completion, str) else completion[0]["content"]
    return text.split()


def overlap(answer, completion):
    """Return how many words of the answer a completion has, plus a little for its own words."""
    words = words_of(completion)
    return float(len(set(words) & set(answer.split()))) + sum(len(word) for word in words) / 64


class NeedsAnswer:
    """Reward as users write it for TRL: it needs a column, and keeps what it was called with."""

    __name__ = "needs_answer"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, answer, log_metric, trainer_state, completion_ids, **kwargs):
        self.calls.append({
            "prompts": prompts, "completions": completions, "answer": answer,
            "completion_ids": completion_ids, **kwargs
        })  # fmt: skip
        log_metric("mine", 1.0)
        assert trainer_state.max_steps == 2
        return [overlap(*pair) for pair in zip(answer, completions, strict=True)]


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["texts", "chats"])
def test_raw_reward_is_called_as_trl_calls_it(folder, tmp_path, prompts):
    """Rewards at rollout equal calls by hand, with the columns of the completions' own rows."""
    reward, expected = NeedsAnswer(), dict(zip(PROMPTS, ANSWERS, strict=True))
    settings = {"num_reference": 8, "transform": "identity", "beta": 0.5, "remove_unused_columns": False}
    trainer = CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward,
        CTRLArguments(str(tmp_path), **(SETTINGS | settings)),
        train_dataset=data(prompts),
        processing_class=tiny_tokenizer(),
        calibrator=RewardCalibrator(prompts, torch.arange(16.0).view(2, 8) / 8),
    )
    measured = []
    take = trainer._transformed.take_measured
    trainer._transformed.take_measured = lambda: [measured.append(found := take()), found][1]
    trainer.train()
    assert len(reward.calls) == 2
    by_hand = []
    for call in reward.calls:
        for prompt, completion, answer, ids, column in zip(
            call["prompts"],
            call["completions"],
            call["answer"],
            call["completion_ids"],
            call["responses"],
            strict=True,
        ):
            text = prompt if isinstance(prompt, str) else prompt[0]["content"]
            assert answer == expected[text] and column == ("a column" if text == PROMPTS[0] else "too")
            assert words_of(completion) == trainer._tokenizer.decode(ids, skip_special_tokens=True).split()
            by_hand.append(overlap(answer, completion))
        assert call["log_extra"] is not None
    assert [value for found in measured for _, value in found] == pytest.approx(by_hand, abs=1e-6)
    assert len(by_hand) == 16 and len(set(by_hand)) > 4


def rewards_to_try():
    tokenizer = tiny_tokenizer()
    model = RewardModel(tiny_classifier("llama"), tokenizer)
    steps = ProcessRewardModel(
        tiny_classifier("llama", num_labels=2, of_tokens=True), tokenizer, step_token="so", separator=" "
    )
    calibrator = RewardCalibrator(CHATS, torch.linspace(-2, 2, 16).view(2, 8))
    answers = CallableReward(lambda prompts, completions, answer, **kwargs: list(map(overlap, answer, completions)))
    return {
        "model": model,
        "steps": steps,
        "ensemble": RewardEnsemble([model, answers]),
        "calibrated": CalibratedReward(model, calibrator),
        "function": answers,
    }


class Kept(TrainerCallback):
    """Keeps what a trainer has logged of its completions after each step."""

    def __init__(self):
        self.trainer, self.steps = None, []

    def on_step_end(self, args, state, control, **kwargs):
        logs = self.trainer._logs
        self.steps.append({
            "prompts": list(logs["prompt"]), "completions": list(logs["completion"]),
            "rewards": {name: list(values) for name, values in logs["rewards"].items()},
            "advantages": list(logs["advantages"]),
        })  # fmt: skip


def trained(kind, folder, output, rewards, steps, **arguments):
    """Train by one of TRL's own trainers; return it and what it logged after each step."""
    kinds = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
    trainer_class, config_class = kinds[kind]
    kept = Kept()
    kept.trainer = trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(folder),
        rewards,
        args=config_class(str(output), **(SETTINGS | {"max_steps": steps} | arguments)),
        train_dataset=data(CHATS),
        processing_class=tiny_tokenizer(),
        callbacks=[kept],
    )
    trainer.train()
    assert trainer.state.global_step == steps == len(kept.steps)
    return trainer, kept.steps


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_rewards_serve_trls_own_trainers(folder, tmp_path, method):
    """Each is one of `reward_funcs` of an unchanged trainer, and TRL gets what a call by hand gives, in 5 steps."""
    rewards = rewards_to_try()
    trainer, steps = trained(method, folder, tmp_path, list(rewards.values()), 5)
    names = [reward.__name__ for reward in rewards.values()]
    assert trainer.reward_func_names == names and names[0] == "LlamaForSequenceClassification"
    answers = {prompt[0]["content"]: answer for prompt, answer in zip(CHATS, ANSWERS, strict=True)}
    logged = [entry for entry in trainer.state.log_history if f"rewards/{names[0]}/mean" in entry]
    assert len(logged) == 5
    for step, entry in zip(steps, logged, strict=True):
        chats = step["prompts"]
        texts = [completion[0]["content"] for completion in step["completions"]]
        assert len(texts) == 8
        own = [answers[chat[0]["content"]] for chat in chats]
        for name, reward in zip(names, rewards.values(), strict=True):
            by_hand = reward(chats, texts, answer=own)
            received = torch.tensor(step["rewards"][name], dtype=torch.float32)
            torch.testing.assert_close(received, by_hand, rtol=1e-5, atol=1e-5)
            assert entry[f"rewards/{name}/mean"] == pytest.approx(float(by_hand.mean()), abs=1e-5)


async def even(prompts, completions, log_metric, log_extra, **kwargs):
    """Reward that has none for completions of an odd length."""
    await asyncio.sleep(0)
    lengths = [len(completion[0]["content"]) for completion in completions]
    log_metric("longest", float(max(lengths)))
    log_extra("length", lengths)
    return [float(length) if length % 2 == 0 else None for length in lengths]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_abstaining_asynchronous_reward_means_the_same_to_trl(folder, tmp_path, method):
    """TRL calls the function itself and our object around it: the same rewards, metrics and advantages."""
    found = []
    for reward in (even, CallableReward(even)):
        trainer, steps = trained(method, folder, tmp_path, reward, 2)
        history = [(entry.get("longest"), entry.get("reward")) for entry in trainer.state.log_history]
        found.append((steps, history, list(trainer._logs["extra"]["length"])))
    assert repr(found[0]) == repr(found[1])  # equal, a NaN to a NaN
    values = [value for step in found[0][0] for value in step["rewards"]["even"]]
    assert 0 < sum(map(math.isnan, values)) < len(values) and found[0][1][0][0] > 0


def test_completions_without_a_reward_have_no_part_in_ctrl(folder, tmp_path):
    """
    Their advantage is 0, and the others' is against the mean of their siblings with a reward, by hand. In the first
    step the policy is the reference policy, so that no KL is subtracted.
    """
    kept, raw = Kept(), []

    def abstaining(prompts, completions, trainer_state, log_metric, log_extra, **kwargs):
        assert trainer_state.global_step == 0
        lengths = [sum(map(ord, completion)) for completion in completions]
        raw.append([float(length) if length % 3 else None for length in lengths])
        return raw[-1]

    settings = {"max_steps": 1, "num_generations": 8, "num_reference": 64, "transform": "identity", "beta": 0.5}
    kept.trainer = trainer = CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        abstaining,
        CTRLArguments(str(tmp_path), **(SETTINGS | settings)),
        train_dataset=data(PROMPTS),
        processing_class=tiny_tokenizer(),
        callbacks=[kept],
    )
    trainer.train()
    calibrator = trainer.calibrator
    assert int(calibrator.no_reward.min()) > 0
    step, rewards = kept.steps[0], raw[-1]
    known = [place for place, reward in enumerate(rewards) if reward is not None]
    assert 2 <= len(known) < 8
    calibrated = [
        calibrator.calibrate([step["prompts"][place]], torch.tensor([rewards[place]])).item() / 0.5 for place in known
    ]
    expected = [0.0] * 8
    for place, value in zip(known, calibrated, strict=True):
        expected[place] = value - (sum(calibrated) - value) / (len(known) - 1)
    assert step["advantages"] == pytest.approx(expected, abs=1e-5)
    received = step["rewards"]["ctrl"]
    assert [place for place in range(8) if not math.isnan(received[place])] == known
    entry = next(entry for entry in trainer.state.log_history if "reward/none" in entry)
    assert entry["reward/none"] == pytest.approx(1 - len(known) / 8)


def test_call_of_trl_and_call_by_hand_agree():
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    called = reward(
        prompts=CHATS,
        completions=[[{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]],
        completion_ids=[[1], [2]],
        answer=["x", "y"],
        trainer_state=object(),
    )
    assert isinstance(called, list) and called == reward(CHATS, ["yes", "no"]).tolist()
    assert reward(prompts=PROMPTS, completions=["yes", "no"]) == reward(PROMPTS, ["yes", "no"]).tolist()


def test_completion_of_several_messages_is_scored_whole():
    """TRL gives such completions if the policy calls tools; the model reads the whole chat."""
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    turns = [
        {"role": "assistant", "content": "let me see"}, {"role": "user", "content": "salt"},
        {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    whole = reward([[*CHATS[0], *turns[:2]]], ["yes"])
    assert reward(prompts=CHATS[:1], completions=[turns]) == whole.tolist()
    with pytest.raises(RewardError, match="end in text of the assistant"):
        reward(prompts=CHATS[:1], completions=[turns[:2]])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"answer": ["x"]}, ArgumentError, r"`answer` must have one entry per response \(2\), got 1"),
        ({"answer": "xy"}, ArgumentTypeError, "`answer` must be a list with one entry per response, got 'xy'"),
        ({"answer": 3}, ArgumentTypeError, "`answer` must be a list"),
    ],
)
def test_column_of_another_length_is_refused_by_name(columns, error, message):
    with pytest.raises(error, match=message):
        CallableReward(lambda prompts, completions, **kwargs: [0.0, 0.0])(["a", "b"], ["c", "d"], **columns)


def test_subclass_that_knows_no_columns_goes_on_working():
    class Old(RewardFunction):
        name = "old"

        def score(self, prompts, responses, response_ids=None):
            return [float(len(response)) for response in responses]

    class Named(RewardFunction):
        name = "named"

        def score(self, prompts, responses, response_ids=None, answer=None):
            return [float(len(one)) for one in answer]

    ensemble = RewardEnsemble([Old(), Named()])
    assert ensemble(["a"], ["bcd"], answer=["x"], other=[1]).tolist() == [2.0]
    assert Named().takes("answer") and not Old().takes("answer") and ensemble.takes("answer")
    assert not ensemble.takes("responses")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("abc", "xyz"), r"`prompts` must be a list .*reward\(\[prompt\], \[response\]\)"),
        ((["abc"], "x"), "`responses` must be a list"),
        ((["abc"], [["x"]]), "`responses` must be texts"),
        ((["abc"], None), "`responses` must be a list"),
    ],
)
def test_strings_where_lists_belong_are_refused(arguments, message):
    with pytest.raises(ArgumentTypeError, match=message):
        CallableReward(lambda prompts, completions, **kwargs: [0.0] * len(completions))(*arguments)


def test_names_where_a_model_belongs_say_how_to_load_it():
    with pytest.raises(ArgumentTypeError, match=r"got the text 'abc'. Load it: RewardModel.from_pretrained"):
        RewardModel("abc", "xyz")
