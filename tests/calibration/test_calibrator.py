"""Test that the calibrator's quantiles are those of its references, and that wrong references are refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from hf_itp import CalibratedReward, RewardCalibrator
from hf_itp.calibration.fingerprints import weights_fingerprint
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning, LoadError, RewardError
from hf_itp.functional import calibrate_rewards
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "how do you bake bread"}]
PROMPTS = ["how do you bake bread", CHAT, "what is salt for"]


def fitted(reward, **options):
    settings = {"num_reference": 8, "tokenizer": tiny_tokenizer(), "max_new_tokens": 4} | options
    return RewardCalibrator.fit(tiny_model("llama"), reward, PROMPTS, **settings)


def test_quantiles_are_those_among_the_prompts_own_references():
    references = torch.tensor([[3.0, 1.0, 2.0, 2.0], [9.0, 7.0, 8.0, 6.0]])
    calibrator = RewardCalibrator(["a", "b"], references)
    rewards = torch.tensor([[2.0, 0.0], [2.0, 8.5]])
    assert torch.equal(calibrator.calibrate(["a", "b"], rewards), calibrate_rewards(rewards, references))
    assert calibrator.calibrate(["b", "a"], torch.tensor([7.5, 2.0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series], ids=str)
def test_rewards_may_be_numbers_of_every_kind(kind):
    references = [[0.0, 1.0, 1.0, 2.0], [5.0, 6.0, 7.0, 8.0]]
    calibrator = RewardCalibrator(["how", "what"], pd.DataFrame(references) if kind is pd.Series else kind(references))
    assert calibrator.calibrate(["how", "what"], kind([1.0, 6.5])).tolist() == [0.5, 0.5]
    with pytest.raises(ArgumentTypeError, match=r"`rewards` must be real numbers.* got None at \[1\]"):
        calibrator.calibrate(["how", "what"], [1.0, None])
    with pytest.raises(ArgumentTypeError, match=r"`reference_rewards` must be real numbers.* rows of different"):
        RewardCalibrator(["how", "what"], [[0.0, 1.0], [2.0]])


def test_counts_tell_ties_from_what_is_below():
    calibrator = RewardCalibrator(["a"], torch.tensor([[1.0, 2.0, 2.0, 3.0]]))
    below, equal, total = calibrator.counts(["a"], torch.tensor([2.0]))
    assert (below.tolist(), equal.tolist(), total.tolist()) == ([1.0], [2.0], [4.0])


def test_fit_scores_what_the_policy_draws(prompt_bound_reward):
    calibrator = fitted(prompt_bound_reward)
    asked = [reward for prompts, texts in prompt_bound_reward.calls for reward in map(
        prompt_bound_reward.reward, prompts, texts)]  # fmt: skip
    rows = torch.tensor(asked).view(3, 8).sort(dim=-1).values
    assert torch.equal(calibrator.reference_rewards, rows)


def test_fit_is_a_function_of_seed_and_prompt(prompt_bound_reward):
    one, same = fitted(prompt_bound_reward, seed=3), fitted(prompt_bound_reward, seed=3)
    assert torch.equal(one.reference_rewards, same.reference_rewards)
    assert not torch.equal(one.reference_rewards, fitted(prompt_bound_reward, seed=4).reference_rewards)


def test_references_are_not_the_candidates_of_the_same_seed(prompt_bound_reward):
    """Otherwise a response would be calibrated by itself."""
    policy, tokenizer = tiny_model("llama"), tiny_tokenizer()
    calibrator = fitted(prompt_bound_reward, seed=0)
    inputs = tokenizer("how do you bake bread", return_tensors="pt")
    out = policy.generate(
        **inputs, strategy="best_of_n", reward_model=prompt_bound_reward, prompts=PROMPTS[:1], num_candidates=8,
        seed=0, max_new_tokens=4, tokenizer=tokenizer, return_dict_in_generate=True,
    )  # fmt: skip
    assert not torch.equal(out.candidate_rewards[0].sort().values, calibrator.reference_rewards[0])


def test_repeated_prompts_are_drawn_for_once(prompt_bound_reward):
    calibrator = RewardCalibrator.fit(
        tiny_model("llama"), prompt_bound_reward, ["a day", "a day", "not a day"], num_reference=4,
        tokenizer=tiny_tokenizer(), max_new_tokens=3,
    )  # fmt: skip
    assert calibrator.reference_rewards.shape == (2, 4)


def test_saved_calibrator_comes_back_the_same(tmp_path, prompt_bound_reward):
    calibrator = fitted(prompt_bound_reward, seed=5, temperature=0.8)
    calibrator.save_pretrained(tmp_path)
    loaded = RewardCalibrator.from_pretrained(tmp_path)
    assert torch.equal(loaded.reference_rewards, calibrator.reference_rewards)
    for name in ("fingerprints", "policy", "reward_model", "sampling", "seed"):
        assert getattr(loaded, name) == getattr(calibrator, name)
    sidecar = json.loads((tmp_path / "calibration.json").read_text())
    assert sidecar["sampling"] == {"do_sample": True, "max_new_tokens": 4, "temperature": 0.8, "top_k": 0}
    assert sidecar["num_reference"] == 8 and sidecar["reward_model"]["name"] == "prompt_bound_reward"


def test_pool_of_any_engine_calibrates(tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": "a", "rewards": [2.0, 1.0]}, {"prompt": CHAT, "rewards": [0.0, 5.0]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert RewardCalibrator.from_pool(path).calibrate([CHAT], torch.tensor([3.0])).tolist() == [0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "rewards": [1.0]}\n{"prompt": "b"}', "line 2 of "),
        ('{"prompt": "a", "rewards": [1.0, 2.0]}\n{"prompt": "b", "rewards": [1.0]}', "got 1 in row 2 "),
        ('{"prompt": "a", "rewards": [1.0]}\n{"prompt', "does not parse in line 2 "),
    ],
)
def test_incomplete_pool_names_the_row(tmp_path, text, message):
    path = tmp_path / "pool.jsonl"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        RewardCalibrator.from_pool(path)


def test_unseen_prompt_names_the_remedies():
    calibrator = RewardCalibrator(["a"], torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ArgumentError, match=r"got 1 of 2 that are not.*'b'.*predict=True"):
        calibrator.calibrate(["a", "b"], torch.tensor([1.0, 1.0]))


def test_calibrator_of_another_reward_or_policy_is_refused(prompt_bound_reward):
    calibrator = fitted(prompt_bound_reward)

    def other(prompts, completions, **kwargs):
        return [0.0] * len(prompts)

    with pytest.raises(ArgumentError, match=r"fitted with prompt_bound_reward. Fit another"):
        CalibratedReward(other, calibrator)
    from hf_itp.calibration.fingerprints import model_identity

    calibrator.check_belongs(policy=model_identity(tiny_model("llama")))
    with pytest.raises(ArgumentError, match="of other weights"):
        calibrator.check_belongs(policy=model_identity(tiny_model("llama", seed=1)))


@pytest.mark.uses_global_rng  # peft draws adapters from it
def test_adapters_do_not_change_whose_calibration_it_is():
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    fingerprint = weights_fingerprint(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    assert weights_fingerprint(adapted) == fingerprint


def test_one_changed_weight_matrix_changes_the_fingerprint():
    model = tiny_model("llama")
    fingerprint = weights_fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert weights_fingerprint(model) != fingerprint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_reference": 1}, ArgumentError, "num_reference.*at least 2"),
        ({"max_new_tokens": 10_000}, ArgumentError, r"Prompt 0 .* positions.*lower `max_new_tokens`"),
    ],
)
def test_bad_settings_are_refused_before_drawing(prompt_bound_reward, options, error, message):
    with pytest.raises(error, match=message):
        fitted(prompt_bound_reward, **options)
    assert prompt_bound_reward.calls == []


def test_no_prompts_are_refused():
    with pytest.raises(ArgumentError, match="at least one prompt"):
        RewardCalibrator.fit(tiny_model("llama"), "embedded", [], tokenizer=tiny_tokenizer())


def test_rewards_that_tell_nothing_apart_are_refused():
    with pytest.raises(ArgumentError, match=r"must differ between responses.*higher temperature"):
        fitted(lambda prompts, completions, **kwargs: [1.0] * len(prompts))


def test_prompts_with_constant_rewards_are_counted_in_a_warning():
    with pytest.warns(ItpWarning, match="1 of 2 prompts"):
        calibrator = RewardCalibrator(["a", "b"], torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert calibrator.calibrate(["a"], torch.tensor([1.0])).tolist() == [0.5]


def test_reward_that_is_not_finite_is_refused():
    with pytest.raises(RewardError, match="nan"):
        fitted(lambda prompts, completions, **kwargs: [float("nan")] * len(prompts))


def test_files_that_do_not_belong_together_are_refused(tmp_path, prompt_bound_reward):
    fitted(prompt_bound_reward).save_pretrained(tmp_path)
    sidecar = json.loads((tmp_path / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps(sidecar | {"prompts": sidecar["prompts"][:1]}))
    with pytest.raises(ArgumentError, match="Copy both files"):
        RewardCalibrator.from_pretrained(tmp_path)
    (tmp_path / "calibration.json").write_text(json.dumps(sidecar | {"schema_version": 99}))
    with pytest.raises(ArgumentError, match="Update hf_itp"):
        RewardCalibrator.from_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"must hold calibration\.safetensors, got no such file"):
        RewardCalibrator.from_pretrained(tmp_path.parent)


def test_calibrated_reward_decodes(prompt_bound_reward):
    policy, tokenizer = tiny_model("llama"), tiny_tokenizer()
    calibrator = fitted(prompt_bound_reward)
    out = policy.generate(
        **tokenizer(PROMPTS[0], return_tensors="pt"), strategy="pessimism", beta=0.1, prompts=PROMPTS[:1],
        reward_model=CalibratedReward(prompt_bound_reward, calibrator), num_candidates=6, seed=1, max_new_tokens=4,
        tokenizer=tokenizer, return_dict_in_generate=True,
    )  # fmt: skip
    raw = torch.tensor([
        prompt_bound_reward.reward(PROMPTS[0], tokenizer.decode(ids, skip_special_tokens=True))
        for ids in out.candidates[0]
    ])  # fmt: skip
    expected = calibrate_rewards(raw[None], calibrator.reference_rewards[:1])
    assert torch.equal(out.candidate_rewards, expected)


def many_prompts():
    words = re.findall(r"\w+", "bread cold cook day eat flour good jar milk mix out rest rise salt water way")
    return [f"how do you {first} a {second}" for first in words for second in words[:3]]


def test_predictor_learns_what_the_prompt_decides(tmp_path):
    """Each prompt's references lie around a mean that is linear in its features, so nearly all can be predicted."""
    model = tiny_classifier("llama")
    reward = RewardModel(model, tiny_tokenizer())
    prompts = many_prompts()
    features = reward.prompt_features(prompts)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator)
    means = (features - features.mean(0)) @ direction / features.std()
    rewards = means[:, None] + 0.3 * torch.randn(len(prompts), 64, generator=generator)
    from hf_itp.calibration import QuantilePredictor

    predictor = QuantilePredictor.fit(reward, prompts, rewards)
    assert predictor.calibration_error < 0.4 * predictor.baseline_error

    calibrator = RewardCalibrator(prompts[:-1], rewards[:-1], predictor=predictor)
    middle = rewards[-1].median()
    assert abs(float(calibrator.calibrate([prompts[-1]], middle[None])) - 0.5) < 0.25
    calibrator.save_pretrained(tmp_path)
    loaded = RewardCalibrator.from_pretrained(tmp_path, reward_model=reward)
    assert torch.equal(loaded.references_of(prompts), calibrator.references_of(prompts))
    with pytest.raises(ArgumentError, match="that are not"):
        RewardCalibrator.from_pretrained(tmp_path).references_of(prompts)


def test_predictor_admits_that_it_knows_nothing():
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    generator = torch.Generator().manual_seed(0)
    prompts = many_prompts()
    means = torch.randn(len(prompts), 1, generator=generator)
    from hf_itp.calibration import QuantilePredictor

    noise = QuantilePredictor.fit(reward, prompts, means + 0.3 * torch.randn(len(prompts), 64, generator=generator))
    assert noise.calibration_error > 0.9 * noise.baseline_error


def test_predictor_needs_features_and_prompts(prompt_bound_reward):
    from hf_itp.calibration import QuantilePredictor

    with pytest.raises(ArgumentError, match="must have features"):
        QuantilePredictor.fit(Featureless(), PROMPTS, torch.arange(12.0).view(3, 4))
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    with pytest.raises(ArgumentError, match="must hold at least 10 with `predict`"):
        QuantilePredictor.fit(reward, ["a", "b"], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


class Featureless:
    name = "a function"
