"""Test that checkpoints of reward models give the saved model's rewards, and all others an error with its remedy."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import ViTConfig

from hf_itp.errors import ArgumentError, LoadError, RewardModelError
from hf_itp.models.host_names import ADAPTERS_OF_5_17
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import (
    DECODERS,
    ENCODERS,
    encoder_tokenizer,
    pair_tokenizer,
    saved,
    saved_adapter,
    tiny_classifier,
)
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

PROMPTS, RESPONSES = ["how do i bake", "see you"], ["use cold water", "yes"]


def config_only(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_saved_reward_model_scores_as_before(tmp_path, architecture):
    model = tiny_classifier(architecture, attn_implementation=None)  # what its release loads it with
    tokenizer = encoder_tokenizer(architecture) if architecture in ENCODERS else tiny_tokenizer()
    loaded = RewardModel.from_pretrained(saved(tmp_path, model), tokenizer=tokenizer)
    assert not loaded.model.training
    expected = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    assert torch.allclose(loaded(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


def test_tokenizer_is_read_from_beside_the_model(tmp_path):
    model = tiny_classifier("llama")
    loaded = RewardModel.from_pretrained(saved(tmp_path, model, tiny_tokenizer()))
    assert loaded.name == str(tmp_path)
    assert loaded.tokenizer.chat_template == tiny_tokenizer().chat_template
    expected = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    assert torch.allclose(loaded(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


def test_checkpoints_own_dtype_is_kept_unless_another_is_asked_for(tmp_path):
    folder = saved(tmp_path, tiny_classifier("llama").bfloat16(), tiny_tokenizer())
    assert RewardModel.from_pretrained(folder).model.dtype == torch.bfloat16
    assert RewardModel.from_pretrained(folder, dtype="float32").model.dtype == torch.float32
    assert RewardModel.from_pretrained(folder, dtype=torch.float32, device="cpu").model.dtype == torch.float32


def test_device_map_places_the_model(tmp_path):
    folder = saved(tmp_path, tiny_classifier("bert").bfloat16(), pair_tokenizer())
    mapped = RewardModel.from_pretrained(folder, device_map={"bert": "cpu", "dropout": "cpu", "classifier": "cpu"})
    assert torch.equal(mapped(PROMPTS, RESPONSES), RewardModel.from_pretrained(folder)(PROMPTS, RESPONSES))


def test_options_reach_the_reward_model(tmp_path):
    folder = saved(tmp_path, tiny_classifier("llama", num_labels=2), tiny_tokenizer())
    loaded = RewardModel.from_pretrained(folder, label=1, max_length=20, unbatched=True, progress=True)
    assert (loaded.label, loaded.max_length, loaded.batch_size, loaded.progress) == (1, 20, 1, True)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    saved(tmp_path / "reward-model", tiny_classifier("llama"), tiny_tokenizer())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RewardModel.from_pretrained("~/reward-model").max_length == 256


def test_language_model_is_refused_because_its_head_would_be_random(tmp_path):
    folder = saved(tmp_path, tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(
        RewardModelError, match=r"`score.weight`, so its rewards would be random. Pass a model trained"
    ):
        RewardModel.from_pretrained(folder, num_labels=1)


def test_encoder_without_its_head_is_refused(tmp_path):
    folder = saved(tmp_path, tiny_classifier("bert").bert, pair_tokenizer())
    with pytest.raises(RewardModelError, match=r"`classifier.bias`, `classifier.weight`, so .* Pass a model trained"):
        RewardModel.from_pretrained(folder)


def test_configuration_with_other_labels_than_the_weights_is_refused(tmp_path):
    folder = saved(tmp_path, tiny_classifier("llama"), tiny_tokenizer())
    with pytest.raises(
        RewardModelError, match=r"expects `score.weight` of shape \(3, 32\), got shape \(1, 32\)\. Pass `num_labels=1`"
    ):
        RewardModel.from_pretrained(folder, num_labels=3, label=0)


def test_folder_without_tokenizer_is_refused_unless_one_is_given(tmp_path):
    folder = saved(tmp_path, tiny_classifier("llama"))
    with pytest.raises(LoadError, match="Pass `tokenizer=`"):
        RewardModel.from_pretrained(folder)
    assert RewardModel.from_pretrained(folder, tokenizer=tiny_tokenizer())(PROMPTS, RESPONSES).shape == (2,)


def test_tokenizer_of_special_tokens_alone_is_no_tokenizer(tmp_path):
    # BERT's comes up without any file, and would read every word as unknown.
    with pytest.raises(LoadError, match=r"got no vocabulary. Pass `tokenizer=`"):
        RewardModel.from_pretrained(saved(tmp_path, tiny_classifier("bert")))


def test_architectures_without_a_classifier_are_refused(tmp_path):
    unknown = config_only(tmp_path / "unknown", model_type="nonesuch")
    picture = str(tmp_path / "picture")
    ViTConfig().save_pretrained(picture)
    for folder in (unknown, picture):
        with pytest.raises(RewardModelError, match="Pass a RewardFunction or a callable that scores with this model"):
            RewardModel.from_pretrained(folder, tokenizer=tiny_tokenizer())


def test_code_of_a_repository_is_not_run_unasked(tmp_path):
    auto_map = {"AutoConfig": "a.Config", "AutoModelForSequenceClassification": "a.Model"}
    folder = config_only(tmp_path / "remote", model_type="remote", auto_map=auto_map)
    with pytest.raises(RewardModelError, match="pass `trust_remote_code=True`"):
        RewardModel.from_pretrained(folder, tokenizer=tiny_tokenizer())


def test_damaged_checkpoints_are_named(tmp_path):
    config = tiny_classifier("llama").config.to_dict()
    without_weights = config_only(tmp_path / "without", **config)
    truncated = config_only(tmp_path / "truncated", **config)
    (tmp_path / "truncated" / "model.safetensors").write_bytes(b"x")
    no_json = config_only(tmp_path / "no-json")
    (tmp_path / "no-json" / "config.json").write_text("{")
    for folder in (without_weights, truncated, no_json):
        with pytest.raises(LoadError, match=r"could not be read: .* Save or download the checkpoint again"):
            RewardModel.from_pretrained(folder, tokenizer=tiny_tokenizer())


def test_missing_places_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="Pass the folder `save_pretrained` wrote to"):
        RewardModel.from_pretrained(str(tmp_path / "empty"))
    for path in (str(tmp_path / "missing"), "./missing", "~/missing", "one/two/three"):
        with pytest.raises(LoadError, match=r"does not exist. Correct the path"):
            RewardModel.from_pretrained(path)


@pytest.mark.parametrize("tokenizer", [None, tiny_tokenizer()], ids=["its own", "given"])
@pytest.mark.parametrize("model_id", ["org/none-such", "none-such", "org/not an id"])
def test_unreachable_repository_is_an_error_without_a_chain(model_id, tokenizer):
    with pytest.raises(
        LoadError, match=r"Correct the id, check the connection, log in with `hf auth login`"
    ) as caught:
        RewardModel.from_pretrained(model_id, tokenizer=tokenizer)
    assert caught.value.__suppress_context__


def test_device_and_device_map_exclude_each_other():
    with pytest.raises(ArgumentError, match="Drop one of them"):
        RewardModel.from_pretrained("org/none-such", device="cpu", device_map="auto")


class TestAdapters:
    @pytest.mark.uses_global_rng
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_adapter_with_its_head_scores_like_the_merged_model(self, tmp_path):
        merged = saved_adapter(tmp_path, "SEQ_CLS")
        if ADAPTERS_OF_5_17:
            with pytest.raises(
                RewardModelError, match=r"is not read by transformers 5\.17.* Install transformers>=5\.18"
            ):
                RewardModel.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
            return
        loaded = RewardModel.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
        expected = RewardModel(merged, tiny_tokenizer())(PROMPTS, RESPONSES)
        assert torch.allclose(loaded(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-4)

    @pytest.mark.uses_global_rng
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_adapter_without_a_head_is_refused(self, tmp_path):
        saved_adapter(tmp_path, None)
        with pytest.raises(RewardModelError, match=r"`score.weight`, so its rewards would be random. Pass a model"):
            RewardModel.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
