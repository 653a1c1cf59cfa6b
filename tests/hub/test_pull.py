"""Test that a pulled checkpoint decodes as it recommends, or that an error says why it cannot."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import hf_itp
from hf_itp import ItpWarning, RewardCalibrator, RewardModel, push_to_hub
from hf_itp.errors import ArgumentError, LoadError, RewardModelError
from hf_itp.rewards.resolve import clear_loaded_reward_models
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

POLICY = "tester/policy"
CALL = {"prompts": ["a", "b"], "seed": 3, "max_new_tokens": 6}
INPUTS = left_padded_batch([7, 5])


def push(model=None, **options):
    push_to_hub(tiny_model("llama") if model is None else model, POLICY, tokenizer=tiny_tokenizer(), **options)


def decoded(policy, **arguments):
    return policy.generate(**INPUTS, **CALL, **arguments)


@pytest.mark.parametrize(
    "recommended",
    [
        {"strategy": "best_of_n", "num_candidates": 4},
        {"strategy": "pessimism", "num_candidates": 5, "beta": 0.3, "pool": "fresh"},
        {"strategy": "soft_best_of_n", "num_candidates": 4, "temperature": 0.5},
    ],
    ids=lambda recommended: recommended["strategy"],
)
def test_auto_is_what_was_recommended_even_where_sampling_has_a_field_of_the_same_name(
    hub_here, reward_model_here, recommended
):
    push(reward_model=reward_model_here, **recommended)
    fields = {name: value for name, value in recommended.items() if name not in ("strategy", "num_candidates")}
    expected = decoded(
        tiny_model("llama"), strategy=hf_itp.get_strategy(recommended["strategy"], **fields),
        reward_model=reward_model_here, num_candidates=recommended["num_candidates"], tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    assert decoded(pulled, strategy="auto").equal(expected)


def test_samplings_temperature_is_not_taken_for_the_strategys(hub_here, reward_model_here):
    push(strategy="soft_best_of_n", temperature=0.5, num_candidates=4, reward_model=reward_model_here)
    expected = decoded(
        tiny_model("llama"), strategy=hf_itp.get_strategy("soft_best_of_n", temperature=0.5), temperature=0.7,
        reward_model=reward_model_here, num_candidates=4, tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    assert decoded(pulled, strategy="auto", temperature=0.7).equal(expected)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_remote_code_takes_positional_inputs_and_overrides(hub_here, reward_model_here, architecture):
    from transformers import AutoModelForSeq2SeqLM

    push(tiny_model(architecture), strategy="pessimism", beta=0.6, num_candidates=4, reward_model=reward_model_here)
    loader = AutoModelForSeq2SeqLM if architecture == "t5" else AutoModelForCausalLM
    plain, remote = loader.from_pretrained(POLICY), loader.from_pretrained(POLICY, trust_remote_code=True)
    ids = {"attention_mask": INPUTS["attention_mask"]}
    assert "generate" in vars(remote) and "generate" not in vars(plain)
    assert remote.generate(INPUTS["input_ids"], **ids, **CALL).equal(decoded(plain, strategy="auto"))
    assert decoded(remote, beta=0.9).equal(decoded(plain, strategy="auto", beta=0.9))
    greedy = {"do_sample": False, "max_new_tokens": 4}
    assert remote.generate(**INPUTS, **greedy, strategy=None).equal(plain.generate(**INPUTS, **greedy))


def test_reward_model_that_changed_is_used_as_it_was_and_said_to_have_changed(hub_here, reward_model_here, tmp_path):
    push(strategy="best_of_n", num_candidates=8, reward_model=reward_model_here)
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    before = decoded(pulled, strategy="auto")
    other = tiny_classifier("llama")
    other.score.weight.data.neg_()
    other.save_pretrained(tmp_path / "other")
    hub_here.publish(reward_model_here, {"model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes()})
    hf_itp.generation.recommended_reward._current_commit.cache_clear()
    clear_loaded_reward_models()
    with pytest.warns(ItpWarning, match="has changed since the checkpoint was pushed"):
        assert decoded(pulled, strategy="auto").equal(before)
    with warnings.catch_warnings():
        now = decoded(pulled, strategy="auto", reward_model=RewardModel.from_pretrained(reward_model_here))
    assert not now.equal(before)


def gone(hub, name):
    del hub.repositories[name]


def gated(hub, name):
    hub.repositories[name].gated = True


def rewritten(hub, name):
    repository = hub.repositories[name]
    repository.commits = repository.commits[:1]
    repository.refs["main"] = repository.commits[0].oid


@pytest.mark.parametrize(
    ("happens", "said"),
    [(gone, "is missing, or private"), (gated, "is gated. Ask for access"), (rewritten, "history was rewritten")],
)
def test_reward_model_that_cannot_be_had_says_why(hub_here, reward_model_here, monkeypatch, happens, said):
    push(strategy="best_of_n", num_candidates=4, reward_model=reward_model_here)
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    tokenizer = tiny_tokenizer()
    happens(hub_here, reward_model_here)
    if happens is gated:
        monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(LoadError, match=said) as raised:
        decoded(pulled, strategy="auto", tokenizer=tokenizer)
    assert reward_model_here in str(raised.value) and "Pass reward_model=..." in str(raised.value)


def test_recommended_reward_model_may_not_bring_code_or_pickles(hub_here, reward_model_here, tmp_path):
    push(strategy="best_of_n", num_candidates=4, reward_model=reward_model_here)
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    held = hub_here.files(reward_model_here)
    ran = tmp_path / "ran"
    config = held["config.json"].decode().replace("{", '{"auto_map": {"AutoConfig": "evil.C", '
                                                  '"AutoModelForSequenceClassification": "evil.M"},', 1)  # fmt: skip
    code = f"open({str(ran)!r}, 'w').close()".encode()
    as_evil = config.replace('"model_type": "llama"', '"model_type": "evil"')
    commit = hub_here.publish(reward_model_here, {"config.json": as_evil.encode(), "evil.py": code})
    pulled.generation_config.hf_itp["reward_model_revision"] = commit
    with pytest.raises(RewardModelError, match="brings code of its own"):
        decoded(pulled, strategy="auto")
    assert not ran.exists()

    repository = hub_here.repositories[reward_model_here]
    pickled = {name: content for name, content in held.items() if name != "model.safetensors"}
    stream = io.BytesIO()
    torch.save(tiny_classifier("llama").state_dict(), stream)
    commit = repository.commit("main", "pickled", {**pickled, "pytorch_model.bin": stream.getvalue()},
                               ["model.safetensors", "evil.py"]).oid  # fmt: skip
    pulled.generation_config.hf_itp["reward_model_revision"] = commit
    with pytest.raises(RewardModelError, match="runs the code it holds and is not loaded"):
        decoded(pulled, strategy="auto")


@pytest.mark.parametrize(
    "fault",
    [
        {"truncated": True},
        pytest.param({"truncated": True, "times": 99}, marks=pytest.mark.slow),
        {"status": 503},
        {"seconds": 2.0},
    ],
    ids=["truncated", "always truncated", "503", "slow"],
)
def test_download_that_fails_is_never_taken_for_a_model(hub_here, reward_model_here, fault):
    push(strategy="best_of_n", num_candidates=4, reward_model=reward_model_here)
    hub_here.faults.add("GET", rf"{POLICY}/resolve/.*model\.safetensors", **fault)
    if fault.get("times", 1) > 5:
        with pytest.raises(Exception):  # noqa: B017  huggingface_hub's own, whatever it is
            AutoModelForCausalLM.from_pretrained(POLICY)
        hub_here.faults.clear()
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    whole = decoded(tiny_model("llama"), strategy="best_of_n", num_candidates=4, reward_model=reward_model_here,
                    tokenizer=tiny_tokenizer())  # fmt: skip
    assert decoded(pulled, strategy="auto").equal(whole)


def test_calibration_comes_back_and_a_missing_one_is_named(hub_here, policy_and_calibration):
    push()
    with pytest.raises(LoadError, match=r"calibration\.safetensors"):
        RewardCalibrator.from_pretrained(POLICY)
    with pytest.raises(LoadError, match="Check the id"):
        RewardCalibrator.from_pretrained("tester/nothing")
    own = RewardCalibrator.from_pretrained(policy_and_calibration[1])
    push(calibrator=own)
    pulled = RewardCalibrator.from_pretrained(POLICY)
    assert pulled.reference_rewards.equal(own.reference_rewards) and pulled.fingerprints == own.fingerprints


# peft draws the adapter's first weights from torch's global random numbers.
@pytest.mark.uses_global_rng
def test_adapter_is_pushed_alone_and_decodes_as_recommended_by_every_way(
    hub_here, reward_model_here, policy_and_calibration, tmp_path
):
    from peft import LoraConfig, get_peft_model

    from hf_itp import Policy

    def adapted(base):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(base, config)

    with pytest.raises(ArgumentError, match="whose base model is on the Hub"):
        push(adapted(AutoModelForCausalLM.from_pretrained(policy_and_calibration[0])))
    saved(tmp_path / "base", tiny_model("llama"), tiny_tokenizer())
    hub_here.publish("tester/base", {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()})
    model = adapted(AutoModelForCausalLM.from_pretrained("tester/base"))
    # On quantiles, since random adapters give rewards of any spread, and a beta that does not fit is warned of.
    recommended = {"strategy": "pessimism", "beta": 0.3, "normalize": "quantile", "num_candidates": 4}
    push(model, reward_model=reward_model_here, **recommended)
    files = set(hub_here.files(POLICY))
    assert {"adapter_config.json", "adapter_model.safetensors", "custom_generate/generate.py"} <= files
    assert "model.safetensors" not in files
    card = hub_here.files(POLICY)["README.md"].decode()
    assert "base_model: tester/base" in card and "GenerationConfig.from_pretrained" in card

    expected = decoded(model, reward_model=reward_model_here, **recommended)
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    with pytest.raises(ArgumentError, match=r"GenerationConfig\.from_pretrained"):
        decoded(pulled, strategy="auto")
    pulled.generation_config = GenerationConfig.from_pretrained(POLICY)
    assert decoded(pulled, strategy="auto").equal(expected)
    assert decoded(pulled, custom_generate=POLICY, trust_remote_code=True).equal(expected)
    assert Policy.from_pretrained(POLICY).model.generation_config.hf_itp["beta"] == 0.3
