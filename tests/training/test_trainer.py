"""Test CTRLTrainer: what it refuses, logs and leaves behind, and what of TRL it relies on."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import RLOOConfig, RLOOTrainer

from hf_itp import CTRLArguments, CTRLTrainer, RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.training.reward import TransformedReward
from tests.tiny import PromptBoundReward, saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
pytestmark = [
    pytest.mark.oldest,
    pytest.mark.uses_global_rng,  # transformers' Trainer seeds it
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def arguments(output, **overrides):
    settings = {
        "num_reference": 32, "transform": "exponential", "t": 5.0, "max_completion_length": 4, "max_steps": 2,
        "per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 1e-3, "report_to": "none",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return CTRLArguments(str(output), **(settings | overrides))


def trainer(folder, output, prompts=PROMPTS, reward=None, **options):
    overrides = options.pop("overrides", {})
    return CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward or PromptBoundReward(),
        arguments(output, **overrides),
        train_dataset=Dataset.from_dict({"prompt": list(prompts) * 4}),
        processing_class=tiny_tokenizer(),
        **options,
    )


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["texts", "chats"])
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
def test_trained_policy_carries_its_calibration_and_how_to_decode_it(folder, tmp_path, prompts, adapters):
    from peft import LoraConfig

    peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if adapters else None
    training = trainer(folder, tmp_path, prompts, peft_config=peft_config)
    training.train()
    training.save_model()
    logs = training.state.log_history[0]
    names = ("reward/raw", "reward/calibrated", "reward/transformed", "win_rate", "win_rate_low", "win_rate_high",
             "best_of_4_win_rate", "kl_sequence")  # fmt: skip
    assert all(name in logs for name in names), logs
    assert logs["win_rate_low"] <= logs["win_rate"] <= logs["win_rate_high"]
    for place in (tmp_path, tmp_path / "checkpoint-2"):
        calibrator = RewardCalibrator.from_pretrained(place)
        assert calibrator.num_reference == 32
        entry = json.loads((place / "generation_config.json").read_text())["hf_itp"]
        # A function has no id that others could load.
        assert entry == {"strategy": "best_of_n", "num_candidates": 4}
        assert (place / "custom_generate" / "generate.py").is_file()
        calibrator.references_of(prompts)


def test_logged_divergence_is_that_of_the_policy(folder, tmp_path):
    """At the first step the policy is the reference policy."""
    training = trainer(folder, tmp_path, overrides={"max_steps": 1})
    training.train()
    assert training.state.log_history[0]["kl_sequence"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_both_ways_to_roll_out_train(folder, tmp_path, shared):
    training = trainer(folder, tmp_path, overrides={"shared_prefix_rollouts": shared, "max_steps": 1})
    before = training.model.model.layers[0].mlp.up_proj.weight.clone()
    training.train()
    assert not torch.equal(before, training.model.model.layers[0].mlp.up_proj.weight)
    lengths = training.state.log_history[0]
    assert 1 <= lengths["completions/min_length"] <= lengths["completions/max_length"] <= 4


def test_rollouts_take_the_shared_path_and_leave_trls_forward_in_place(folder, tmp_path, monkeypatch):
    from hf_itp.sampling import sampler as module

    paths = []
    make = module.make_decoder

    def recorded(*args, **kwargs):
        decoder = make(*args, **kwargs)
        paths.append(decoder.path)
        return decoder

    monkeypatch.setattr(module, "make_decoder", recorded)
    training = trainer(folder, tmp_path, overrides={"max_steps": 1})
    forward = vars(training.model)["forward"]
    training.train()
    assert set(paths) == {"shared"}
    assert vars(training.model)["forward"] == forward


def test_references_are_taken_up_after_a_kill(folder, tmp_path):
    first = trainer(folder, tmp_path)
    drawn = first.calibrate().reference_rewards
    asked = PromptBoundReward()
    again = trainer(folder, tmp_path, reward=asked)
    assert torch.equal(again.calibrate().reference_rewards, drawn)
    assert asked.calls == []


def test_calibrator_of_another_policy_or_reward_is_refused(folder, tmp_path):
    calibrator = trainer(folder, tmp_path).calibrate()

    def other(prompts, completions, **kwargs):
        return [0.0] * len(prompts)

    with pytest.raises(ArgumentError, match="belong to this reward model"):
        trainer(folder, tmp_path, reward=other, calibrator=calibrator)
    elsewhere = saved_policy(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(ArgumentError, match="belong to this policy"):
        trainer(elsewhere, tmp_path, calibrator=calibrator)
    with pytest.raises(ArgumentError, match="are not, the first"):
        trainer(folder, tmp_path, ["a new day"], calibrator=calibrator)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_reference": 8}, "Draw 17 or more"),
        ({"strategy": "nonsense"}, "nonsense"),
        ({"strategy_fields": {"betta": 1.0}}, "betta"),
        ({"transform": "exponential", "t": None}, "`t` must be given"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(folder, tmp_path, overrides, message):
    with pytest.raises(ArgumentError, match=message):
        trainer(folder, tmp_path, overrides=overrides)


def test_constant_rewards_are_refused_when_training_begins(folder, tmp_path):
    training = trainer(folder, tmp_path, reward=lambda prompts, completions, **kwargs: [1.0] * len(prompts))
    with pytest.raises(ArgumentError, match="must differ between responses"):
        training.train()


def test_reward_is_the_transformed_quantile():
    from hf_itp.rewards import as_reward_function
    from hf_itp.training import CTRLObjective
    from hf_itp.training.objective import ObjectiveArguments

    objective = CTRLObjective.from_arguments(ObjectiveArguments(transform="identity", beta=0.5, num_reference=4))
    calibrator = RewardCalibrator(["a"], torch.tensor([[1.0, 2.0, 2.0, 5.0]]))

    def length(prompts, completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    reward = TransformedReward(as_reward_function(length), objective, calibrator)
    assert reward(["a", "a"], ["xx", [{"role": "assistant", "content": "xxxx"}]]) == [1.0, 1.5]
    assert [value for _, value in reward.take_measured()] == [2.0, 4.0]
    assert reward.take_measured() == []


def test_trl_still_has_what_the_trainer_leans_on(folder, tmp_path):
    """Fail with the name of what a new TRL changed; see the trainer's docstring."""
    private = ("_generate_single_turn", "_calculate_rewards")
    assert [name for name in private if not callable(getattr(RLOOTrainer, name, None))] == []
    parameters = list(inspect.signature(RLOOTrainer._generate_single_turn).parameters)
    assert parameters == ["self", "prompt_ids", "images", "multimodal_fields"]
    assert {"beta", "max_completion_length", "temperature", "top_p", "top_k", "min_p"} <= set(
        RLOOConfig.__dataclass_fields__
    )
    training = trainer(folder, tmp_path)
    held = ("beta", "_metrics", "_step", "_tokenizer", "eos_token_ids", "generation_config", "generation_kwargs")
    assert [name for name in held if not hasattr(training, name)] == []
    assert "forward" in vars(training.model), "TRL no longer sets a forward: `_own_forward` can go"
    assert training.beta == 1.0
    # `beta` multiplies the KL penalty.
    source = inspect.getsource(RLOOTrainer._generate_and_score_completions)
    assert "self.beta * kl" in source
