"""Test that columns of the data reach a reward, whether CTRLTrainer or TRL's own trainers call it."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
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


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_rewards_serve_trls_own_trainers(folder, tmp_path, method):
    """Each is one of `reward_funcs`, and TRL gets what a call by hand gives."""
    kinds = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
    trainer_class, config_class = kinds[method]
    given = []

    class Watched(trainer_class):
        def _calculate_rewards(self, inputs, prompts, completions, ids):
            rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
            given.append(([dict(row) for row in inputs], completions, ids, rewards.clone()))
            return rewards

    rewards = rewards_to_try()
    trainer = Watched(
        AutoModelForCausalLM.from_pretrained(folder),
        list(rewards.values()),
        args=config_class(str(tmp_path), **SETTINGS),
        train_dataset=data(CHATS),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.reward_func_names[0] == "LlamaForSequenceClassification" == rewards["model"].__name__
    trainer.train()
    assert len(given) == 2
    for inputs, completions, ids, table in given:
        chats = [row["prompt"] for row in inputs]
        texts = [completion[0]["content"] for completion in completions]
        tensors = [torch.tensor(row, dtype=torch.long) for row in ids]
        for place, reward in enumerate(rewards.values()):
            by_hand = reward(chats, texts, tensors, answer=[row["answer"] for row in inputs])
            torch.testing.assert_close(table[:, place].cpu(), by_hand, rtol=1e-5, atol=1e-5)


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
