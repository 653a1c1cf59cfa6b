"""Test that a calibration records its whole draw: each setting is honoured, compared, or refused before drawing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation.stopping_criteria import MaxTimeCriteria

from hf_itp import CalibratedReward, RewardCalibrator
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpError
from hf_itp.pools.file import read_pool
from hf_itp.sampling import draw_responses
from tests.tiny import EOS, tiny_model, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for"]
CHAT = [{"role": "user", "content": "how do you bake bread"}]


class Counted:
    """Reward that differs for every response, and counts its calls."""

    __name__ = "counted"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts, completions, completion_ids, **kwargs):
        self.calls += 1
        return [float(sum((place + 1) * token for place, token in enumerate(ids))) for ids in completion_ids]


def policy(**settings):
    model = tiny_model("llama")
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def fitted(prompts=PROMPTS, model=None, reward=None, **options):
    settings = {"num_reference": 6, "tokenizer": tiny_tokenizer(), "max_new_tokens": 5} | options
    settings = {name: value for name, value in settings.items() if value is not None}
    return RewardCalibrator.fit(model or policy(), reward or Counted(), prompts, **settings)


def thinking_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is defined %} so {% endif %}"
    return tokenizer


def drawn(folder):
    return [ids for row in read_pool(folder / "reference_pool.jsonl") for ids in row["response_ids"]]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({"generation_config": GenerationConfig(temperature=0.5)}, {}, "temperature"),
        (
            {"generation_config": GenerationConfig(temperature=0.5)},
            {"generation_config": GenerationConfig(temperature=0.9)},
            "temperature",
        ),
        ({"model": {"repetition_penalty": 1.5}}, {}, "repetition_penalty"),
        (
            {"prompts": [CHAT], "tokenizer": thinking_tokenizer()},
            {
                "prompts": [CHAT],
                "tokenizer": thinking_tokenizer(),
                "chat_template_kwargs": {"enable_thinking": False},
            },
            "enable_thinking",
        ),
        ({"logits_processor": [TemperatureLogitsWarper(0.5)]}, {}, "logits_processor"),
        ({"suppress_tokens": [7]}, {"suppress_tokens": [8]}, "suppress_tokens"),
        ({"eos_token_id": [EOS, 9]}, {}, "eos_token_id"),
    ],
)
def test_rows_of_another_draw_are_not_taken_up(tmp_path, first, second, name):
    def fit(options):
        return fitted(output_dir=tmp_path, model=policy(**options.get("model", {})), **_without(options, "model"))

    fit(first)
    with pytest.raises(ArgumentError, match=f"{name}.*Choose another folder"):
        fit(second)
    asked = Counted()
    fit({**first, "reward": asked})
    assert asked.calls == 0, "the same draw is taken up"


def test_another_template_is_another_draw(tmp_path):
    fitted([CHAT], output_dir=tmp_path)
    other = tiny_tokenizer()
    other.chat_template = other.chat_template.replace("assistant", "user")
    with pytest.raises(ArgumentError, match=r"chat_template.*Choose another folder"):
        fitted([CHAT], output_dir=tmp_path, tokenizer=other)


def test_arguments_reach_the_chat_template(tmp_path):
    """The words that the argument adds are the only ones that the policy may not repeat."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if not thinking %} {{ words }}{% endif %}"
    words = tokenizer.convert_ids_to_tokens(list(range(10, 60)))
    arguments = {"thinking": False, "words": " ".join(words)}
    fitted(
        [CHAT], tokenizer=tokenizer, chat_template_kwargs=arguments, no_repeat_ngram_size=1, output_dir=tmp_path,
        num_reference=64,
    )  # fmt: skip
    assert not {token for ids in drawn(tmp_path) for token in ids} & set(range(10, 60))


@pytest.mark.parametrize("where", ["keyword", "config", "checkpoint"])
def test_settings_are_honoured_wherever_they_are(tmp_path, where):
    """With top_k=1 every response is the greedy one, since no two words tie."""
    settings = {"top_k": 1}
    options = {
        "keyword": settings,
        "config": {"generation_config": GenerationConfig(**settings)},
        "checkpoint": {"model": policy(**settings)},
    }[where]
    model, tokenizer = policy(), tiny_tokenizer()

    def first_token(prompts, completions, completion_ids, **kwargs):
        return [float(len(prompt)) + 0.1 * place for place, prompt in enumerate(prompts)]

    fitted(reward=first_token, output_dir=tmp_path, **options)
    for row in read_pool(tmp_path / "reference_pool.jsonl"):
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        greedy = model.generate(ids, do_sample=False, max_new_tokens=5)[0, ids.shape[1] :].tolist()
        assert row["response_ids"] == [greedy] * 6


def test_what_the_generation_config_sets_is_not_overridden():
    config = GenerationConfig(max_new_tokens=3, top_k=50, temperature=0.7)
    calibrator = fitted(generation_config=config, max_new_tokens=None)
    assert calibrator.draw["settings"] == {
        "eos_token_id": [EOS], "max_new_tokens": 3, "temperature": 0.7, "top_k": 50,
    }  # fmt: skip
    assert config.do_sample is None, "the caller's config stays as it is"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_config": GenerationConfig(do_sample=False)}, "do_sample"),
        ({"do_sample": False}, "do_sample"),
        ({"num_beams": 4}, "num_beams"),
        ({"model": policy(num_beams=4)}, "num_beams"),
        ({"max_time": 1.0}, "max_time"),
        ({"temprature": 0.5}, "temprature"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 0}, "`temperature` must be positive .* Leave it out or pass e.g. temperature=0.7"),
        ({"generation_config": GenerationConfig(temperature=0.0)}, "`temperature` must be positive"),
        ({"model": policy(temperature=0.0)}, "`temperature` must be positive"),
        ({"sequence_bias": object()}, "sequence_bias"),
        ({"suppress_tokens": [object()]}, "suppress_tokens"),
        ({"prompts": [CHAT], "chat_template_kwargs": {"tools": [object()]}}, "tools"),
        ({"stopping_criteria": [MaxTimeCriteria(1.0)]}, "MaxTimeCriteria"),
        ({"prefix_allowed_tokens_fn": lambda batch, ids: [1]}, "prefix_allowed_tokens_fn"),
        ({"max_new_tokens": None, "max_length": 2}, "max_length"),
        ({"reward_kwargs": {"answer": ["one"]}}, "reward_kwargs"),
        ({"reward_kwargs": {"answer": "ab"}}, "reward_kwargs"),
    ],
)
def test_what_cannot_be_drawn_or_recorded_is_refused_by_name(options, message):
    asked = Counted()
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        fitted(reward=asked, **options)
    assert asked.calls == 0


def test_processor_of_ones_own_is_refused_by_name():
    class Mine(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores

    with pytest.raises(ArgumentError, match="Mine"):
        fitted(logits_processor=LogitsProcessorList([Mine()]))


def test_numbers_of_numpy_are_numbers():
    calibrator = fitted(temperature=np.float32(0.5), top_k=np.int64(9), max_new_tokens=np.int64(5))
    assert json.loads(json.dumps(calibrator.draw["settings"]))["top_k"] == 9


def test_min_length_counts_the_prompt_alone_and_not_its_padding(tmp_path):
    """Each prompt is drawn as plain `generate` draws it by itself, whatever is drawn with it."""
    tokenizer = tiny_tokenizer()
    long, short = "how do you bake bread and eat it on a good day", "salt"
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in (long, short)]
    bound = lengths[0] + 1
    model = policy()
    with torch.no_grad():
        model.lm_head.weight[EOS] += 0.3 * model.lm_head.weight.std() * torch.sign(model.lm_head.weight[EOS])
    fitted([long, short], model=model, min_length=bound, max_new_tokens=20, num_reference=40, output_dir=tmp_path)
    for length, row in zip(lengths, read_pool(tmp_path / "reference_pool.jsonl"), strict=True):
        assert all(length + len(ids) > bound or len(ids) == 20 for ids in row["response_ids"])
        assert not any(EOS in ids[: max(0, bound - length)] for ids in row["response_ids"])


def test_draw_goes_through_the_file_and_old_files_load(tmp_path):
    calibrator = fitted(temperature=0.8)
    calibrator.save_pretrained(tmp_path)
    assert RewardCalibrator.from_pretrained(tmp_path).draw == calibrator.draw
    sidecar = json.loads((tmp_path / "calibration.json").read_text())
    del sidecar["draw"]
    (tmp_path / "calibration.json").write_text(json.dumps(sidecar))
    old = RewardCalibrator.from_pretrained(tmp_path)
    assert old.draw is None
    old.check_belongs(draw=calibrator.draw)


def test_every_difference_is_named():
    one, other = fitted(temperature=0.8, top_p=0.9), fitted(temperature=0.7, min_new_tokens=2)
    with pytest.raises(ArgumentError) as caught:
        one.check_belongs(draw=other.draw)
    for part in (
        "`temperature` is 0.7 and was 0.8",
        "`top_p` is None and was 0.9",
        "`min_new_tokens` is 2 and was None",
    ):
        assert part in str(caught.value)


@pytest.mark.uses_global_rng  # peft draws adapters from it
def test_adapters_that_change_the_policy_are_part_of_the_draw():
    from peft import LoraConfig, get_peft_model

    plain = fitted().draw
    adapted = get_peft_model(policy(), LoraConfig(target_modules=["q_proj"], r=2))
    fresh = fitted(model=adapted)
    fresh.check_belongs(draw=plain)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    with pytest.raises(ArgumentError, match="policy adapters"):
        fitted(model=adapted).check_belongs(draw=plain)
    with adapted.disable_adapter():
        fitted(model=adapted).check_belongs(draw=plain)


def test_columns_reach_the_reward_with_their_prompt(tmp_path):
    seen = []

    def graded(prompts, completions, completion_ids, answer, **kwargs):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(sum(ids)) for ids in completion_ids]

    answers = {prompt: f"answer to {prompt}" for prompt in PROMPTS}
    options = {"reward": graded, "reward_kwargs": {"answer": list(answers.values())}, "output_dir": tmp_path}
    fitted(**options)
    assert len(seen) == 12 and all(answers[prompt] == answer for prompt, answer in seen)
    with pytest.raises(ArgumentError, match=r"reward_columns.answer.*Choose another folder"):
        fitted(**{**options, "reward_kwargs": {"answer": ["yes", "no"]}})


def test_equal_prompts_with_unlike_columns_are_refused_where_the_reward_takes_them():
    def graded(prompts, completions, completion_ids, answer):
        return [float(sum(ids)) for ids in completion_ids]

    def ungraded(prompts, completions, completion_ids):
        return [float(sum(ids)) for ids in completion_ids]

    columns = {"reward_kwargs": {"answer": ["one", "two"]}}
    with pytest.raises(ArgumentError, match=r"`answer` must be the same.*'one' for prompt 0 and 'two' for prompt 1"):
        fitted(["a day", "a day"], reward=graded, **columns)
    assert fitted(["a day", "a day"], reward=ungraded, **columns).reference_rewards.shape == (1, 6)


def test_reward_without_its_column_is_refused_before_the_first_draw(monkeypatch):
    def graded(prompts, completions, answer):
        return [0.0] * len(prompts)

    model = policy()
    monkeypatch.setattr(model, "forward", _never)
    with pytest.raises(ItpError, match="answer"):
        fitted(model=model, reward=graded)


def test_prompts_are_checked_before_the_first_draw(monkeypatch):
    model, tokenizer = policy(), tiny_tokenizer()
    monkeypatch.setattr(model, "forward", _never)
    tokenizer.chat_template = "{{ raise_exception('only users speak') }}"
    with pytest.raises(ArgumentError, match="only users speak"):
        fitted([CHAT], model=model, tokenizer=tokenizer)
    with pytest.raises(ArgumentError, match="predict"):
        fitted(model=model, predict=True)
    unknown = CalibratedReward(Counted(), RewardCalibrator(["another"], torch.tensor([[0.0, 1.0]])))
    with pytest.raises(ArgumentError, match="fitted on"):
        fitted(model=model, reward=unknown)


def test_draw_responses_takes_template_arguments_and_refuses_unknown_names():
    model, tokenizer = policy(), tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ more }}"
    one, other = (
        draw_responses(model, tokenizer, [CHAT], 4, max_new_tokens=6, chat_template_kwargs={"more": more})
        for more in (" and eat", " and rest")
    )
    by_hand = draw_responses(model, tokenizer, ["how do you bake bread and eat"], 4, max_new_tokens=6)
    assert [ids.tolist() for ids in one[0]] == [ids.tolist() for ids in by_hand[0]]
    assert [ids.tolist() for ids in other[0]] != [ids.tolist() for ids in by_hand[0]]
    with pytest.raises(ArgumentError, match="temprature"):
        draw_responses(model, tokenizer, PROMPTS, 4, temprature=0.5)


def test_length_nobody_sets_is_that_of_generate():
    drawn = draw_responses(policy(eos_token_id=None), tiny_tokenizer(), PROMPTS, 3)
    assert {len(ids) for group in drawn for ids in group} == {20}


def _never(*args, **kwargs):
    raise AssertionError("a forward pass was made")


def _without(options, name):
    return {key: value for key, value in options.items() if key != name}
