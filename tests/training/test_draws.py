"""Test that a trainer's draw is described once: refused, compared and passed on before a token is drawn."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_itp import (
    CTRLArguments,
    CTRLTrainer,
    QuantileRegressionArguments,
    QuantileRegressionTrainer,
    RewardCalibrator,
)
from hf_itp.errors import ArgumentError, ItpError
from tests.tiny import EOS, PromptBoundReward, saved_policy, tiny_tokenizer

TEXTS = ["how do you bake bread", "what is salt for"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
COMMON = {
    "transform": "identity", "max_completion_length": 4, "max_steps": 1, "per_device_train_batch_size": 8,
    "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
}  # fmt: skip
pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def thinking_tokenizer():
    """Return a tokenizer like that of a model that thinks unless it is told not to."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %} rest day{% endif %}"
    )
    return tokenizer


def ctrl(folder, output, data=None, reward=None, model=None, tokenizer=None, calibrator=None, **overrides):
    settings = COMMON | {"num_reference": 16, "num_generations": 4, "learning_rate": 0.0} | overrides
    return CTRLTrainer(
        model or AutoModelForCausalLM.from_pretrained(folder),
        reward or PromptBoundReward(),
        CTRLArguments(str(output), **settings),
        train_dataset=Dataset.from_dict(data or {"prompt": TEXTS * 2}),
        processing_class=tokenizer or tiny_tokenizer(),
        calibrator=calibrator,
    )


def regression(folder, output, data=None, reward=None, model=None, tokenizer=None, **options):
    overrides = options.pop("overrides", {})
    if "pool" not in options:
        options["train_dataset"] = Dataset.from_dict(data or {"prompt": TEXTS})
    return QuantileRegressionTrainer(
        model or AutoModelForCausalLM.from_pretrained(folder),
        reward or PromptBoundReward(),
        QuantileRegressionArguments(str(output), **(COMMON | {"num_reference": 33} | overrides)),
        processing_class=tokenizer or tiny_tokenizer(),
        **options,
    )


def fitted(folder, prompts=TEXTS, reward=None, tokenizer=None, **options):
    settings = {"num_reference": 16, "max_new_tokens": 4} | options
    return RewardCalibrator.fit(
        AutoModelForCausalLM.from_pretrained(folder),
        reward or PromptBoundReward(),
        prompts,
        tokenizer=tokenizer or tiny_tokenizer(),
        **settings,
    )


def test_calibrator_fitted_alike_is_taken(folder, tmp_path):
    ctrl(folder, tmp_path, calibrator=fitted(folder)).train()
    ctrl(folder, tmp_path, temperature=0.5, calibrator=fitted(folder, temperature=0.5))


@pytest.mark.parametrize("trainer", [ctrl, regression])
def test_temperature_of_zero_is_refused_with_the_way_out_before_a_token_is_drawn(folder, tmp_path, trainer):
    overrides = {"temperature": 0.0} if trainer is ctrl else {"overrides": {"generation_kwargs": {"temperature": 0.0}}}
    with pytest.raises(ArgumentError, match=r"`temperature` must be positive .* pass e\.g\. temperature=0\.7"):
        trainer(folder, tmp_path, **overrides).train()


@pytest.mark.parametrize(
    ("drawn", "trained", "message"),
    [
        ({"temperature": 0.7}, {}, "`temperature` is None and was 0.7"),
        ({}, {"temperature": 0.7}, "`temperature` is 0.7 and was None"),
        ({"max_new_tokens": 3}, {}, "`max_new_tokens` is 4 and was 3"),
        ({}, {"generation_kwargs": {"no_repeat_ngram_size": 2}}, "`no_repeat_ngram_size` is 2 and was None"),
        ({"eos_token_id": [EOS, 9]}, {}, r"`eos_token_id` is \[2\] and was \[2, 9\]"),
    ],
)
def test_calibrator_of_another_draw_is_refused(folder, tmp_path, drawn, trained, message):
    calibrator = fitted(folder, **drawn)
    with pytest.raises(ArgumentError, match=message):
        ctrl(folder, tmp_path, calibrator=calibrator, **trained)


def test_calibrator_of_another_template_argument_is_refused(folder, tmp_path):
    calibrator = fitted(folder, CHATS, tokenizer=thinking_tokenizer())
    with pytest.raises(ArgumentError, match="enable_thinking` is False and was None"):
        ctrl(
            folder, tmp_path, {"prompt": CHATS * 2}, tokenizer=thinking_tokenizer(), calibrator=calibrator,
            chat_template_kwargs={"enable_thinking": False},
        )  # fmt: skip


def test_checkpoint_changed_in_memory_is_no_reference(folder, tmp_path):
    """TRL loads the reference policy from the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(ArgumentError, match="`model` must have the weights"):
        ctrl(folder, tmp_path, model=model)


def test_settings_changed_in_memory_count_for_references_too(folder, tmp_path):
    other = saved_policy(tmp_path / "penalty")
    path = other / "generation_config.json" if hasattr(other, "joinpath") else None
    path = path or __import__("pathlib").Path(other) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"no_repeat_ngram_size": 1}))
    model = AutoModelForCausalLM.from_pretrained(other)
    model.generation_config.no_repeat_ngram_size = None
    training = ctrl(other, tmp_path / "out", model=model)
    assert "no_repeat_ngram_size" not in training.draw.settings
    plain = ctrl(folder, tmp_path / "plain")
    assert torch.equal(training.calibrate().reference_rewards, plain.calibrate().reference_rewards)


def test_adapters_that_were_there_before_are_part_of_the_reference(folder, tmp_path):
    """TRL's reference has a copy of them: references and rollouts say only the adapters' word."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["up_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 5.0, generator=torch.Generator().manual_seed(0))
    training = ctrl(folder, tmp_path, model=model, num_reference=8)
    references = training.calibrate().reference_rewards
    base = fitted(folder, num_reference=8).reference_rewards
    adapted = RewardCalibrator.fit(
        model, PromptBoundReward(), TEXTS, num_reference=8, tokenizer=tiny_tokenizer(), max_new_tokens=4,
        seed=training.args.seed,
    ).reference_rewards  # fmt: skip
    assert torch.equal(references, adapted) and not torch.equal(references, base)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"generation_kwargs": {"do_sample": False}}, "do_sample"),
        ({"generation_kwargs": {"num_beams": 3}}, "num_beams"),
        ({"generation_kwargs": {"max_time": 1.0}}, "max_time"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"shared_prefix_rollouts": False, "generation_kwargs": {"stop_strings": ["salt"]}}, "stop_strings"),
        ({"shared_prefix_rollouts": False, "generation_kwargs": {"min_length": 30}}, "min_length"),
        ({"use_transformers_continuous_batching": True, "repetition_penalty": 1.2}, "repetition_penalty"),
        (
            {"use_transformers_continuous_batching": True, "generation_kwargs": {"no_repeat_ngram_size": 2}},
            "no_repeat_ngram_size",
        ),
    ],
)
def test_setting_that_cannot_be_honoured_is_refused(folder, tmp_path, overrides, message):
    with pytest.raises(ArgumentError, match=f"`{message}`"):
        ctrl(folder, tmp_path, **overrides)


def test_rollouts_are_drawn_without_dropout(folder, tmp_path):
    training = ctrl(folder, tmp_path, num_reference=8)
    modes = []
    training.model.model.layers[0].register_forward_pre_hook(
        lambda module, args: modes.append((module.training, torch.is_grad_enabled()))
    )
    training.calibrate()
    modes.clear()
    training.model.train()
    for shared in (True, False):
        training.args.shared_prefix_rollouts = shared
        training._generate_single_turn([[1, 5, 6]] * 4, None, {})
    assert set(modes) == {(False, False)} and training.model.training


@pytest.mark.parametrize("make", [ctrl, regression], ids=["rl", "regression"])
def test_columns_of_the_data_reach_the_reward_where_references_are_drawn(folder, tmp_path, make):
    seen = []

    def graded(prompts, completions, completion_ids, answer, **kwargs):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(sum(ids)) for ids in completion_ids]

    answers = dict(zip(TEXTS, ["forty", "two"], strict=True))
    training = make(folder, tmp_path, {"prompt": TEXTS, "answer": list(answers.values())}, reward=graded)
    training.calibrate() if make is ctrl else training._references()
    assert seen and all(answers[prompt] == answer for prompt, answer in seen)


@pytest.mark.parametrize("make", [ctrl, regression], ids=["rl", "regression"])
def test_column_that_is_not_there_is_refused_when_the_trainer_is_made(folder, tmp_path, make):
    def graded(prompts, completions, answer):
        return [0.0] * len(prompts)

    with pytest.raises(ItpError, match="answer"):
        make(folder, tmp_path, reward=graded)


def test_equal_prompts_with_unlike_answers_are_refused(folder, tmp_path):
    def graded(prompts, completions, answer):
        return [0.0] * len(prompts)

    training = ctrl(folder, tmp_path, {"prompt": [TEXTS[0]] * 4, "answer": ["1", "1", "2", "1"]}, reward=graded)
    with pytest.raises(ArgumentError, match="`answer` must be the same"):
        training.calibrate()


def test_regression_reads_prompts_by_the_template_arguments(folder, tmp_path):
    """The tokens are those of the template rendered by hand with the argument."""
    overrides = {"chat_template_kwargs": {"enable_thinking": False}, "generation_kwargs": {"temperature": 0.5}}
    tokenizer = thinking_tokenizer()
    training = regression(folder, tmp_path, {"prompt": CHATS}, tokenizer=tokenizer, overrides=overrides)
    examples = training._examples(training._references())
    expected = [tokenizer(f"{text} rest day")["input_ids"] for text in TEXTS]
    assert [list(ids) for ids in dict.fromkeys(tuple(example["prompt_ids"]) for example in examples)] == expected
    assert max(len(example["response_ids"]) for example in examples) <= 4
    assert training.calibrator.draw["settings"]["temperature"] == 0.5

    again = regression(folder, tmp_path / "again", tokenizer=tokenizer, pool=tmp_path / "_calibration")
    with pytest.raises(ArgumentError, match="enable_thinking` is None and was False"):
        again.train()


def test_regression_trains_on_a_pool_drawn_with_other_settings(folder, tmp_path):
    """Nothing is drawn again, so the maximum length of responses does not matter."""
    fitted(folder, num_reference=33, max_new_tokens=6, temperature=0.8, output_dir=tmp_path / "pool")
    regression(folder, tmp_path, pool=tmp_path / "pool")._references()


def test_regression_ends_responses_where_rollouts_do(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [9]
    assert regression(folder, tmp_path, model=model).draw.settings["eos_token_id"] == [EOS, 9]


def test_two_runs_with_adapters_start_and_end_alike(folder, tmp_path):
    from peft import LoraConfig

    def run(name, disturbance):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        training = regression(folder, tmp_path / name, peft_config=config)
        start = {n: p.detach().clone() for n, p in training.model.named_parameters() if "lora_" in n}
        training.train()
        assert not torch.equal(state, torch.get_rng_state()), "Trainer seeds it, as it always does"
        return start, {n: p.detach().clone() for n, p in training.model.named_parameters() if "lora_" in n}

    (start, end), (same_start, same_end) = run("one", 1), run("two", 2)
    assert any(bool(value.any()) for value in start.values())
    for ours, theirs in ((start, same_start), (end, same_end)):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
