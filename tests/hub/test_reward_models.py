"""Test reward models on the Hub: what a folder shows too, and revisions and other repositories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_itp.errors import ArgumentError, RewardModelError
from hf_itp.models.host_names import ADAPTERS_OF_5_17
from hf_itp.rewards import ProcessRewardModel, RewardModel
from tests.hub.server import LoopbackHub
from tests.rewards.checkpoints.layouts import folders
from tests.rewards.classifiers import saved, saved_adapter, tiny_classifier
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.oldest

PROMPT, RESPONSE = "how do you bake bread", "use good flour\n\nmix it"


def publish(hub: LoopbackHub, repo: str, folder: Path) -> str:
    """Commit every file of a folder at once; return the commit."""
    return hub.publish(repo, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})


@pytest.mark.parametrize("build", [folders.pythia, folders.open_rlhf("value_head", mean=1.0, std=2.0)])
def test_family_is_recognized_on_the_hub(build, hub_here, tmp_path):
    reference = build(tmp_path / "model").reference
    publish(hub_here, "org/model", tmp_path / "model")
    reward = RewardModel.from_pretrained("org/model")([PROMPT], [RESPONSE])
    assert reward.item() == pytest.approx(reference(PROMPT, RESPONSE), abs=1e-4)


def test_process_reward_model_of_the_hub_gives_its_authors_rewards(hub_here, tmp_path):
    options, reference, _ = folders.qwen_process(tmp_path / "model")
    commit = publish(hub_here, "org/model", tmp_path / "model")
    reward_model = ProcessRewardModel.from_pretrained("org/model", **options)
    assert reward_model([PROMPT], [RESPONSE]).item() == pytest.approx(reference(PROMPT, RESPONSE), abs=1e-4)
    assert (reward_model.name, reward_model.revision) == ("org/model", commit)


def test_code_runs_at_the_commit_that_was_read(hub_here, tmp_path):
    options, reference, _ = folders.armo(tmp_path / "model")
    commit = publish(hub_here, "org/model", tmp_path / "model")
    # The owner changes the code afterwards.
    (tmp_path / "model" / "modeling_custom.py").write_text("raise SystemExit('changed')")
    later = publish(hub_here, "org/model", tmp_path / "model")
    assert later != commit
    with pytest.raises(RewardModelError, match="brings code of its own"):
        RewardModel.from_pretrained("org/model", revision=commit)
    with pytest.raises(ArgumentError, match="must be a commit"):
        RewardModel.from_pretrained("org/model", **options)
    reward_model = RewardModel.from_pretrained("org/model", revision=commit, **options)
    assert reward_model([PROMPT], [RESPONSE]).item() == pytest.approx(reference(PROMPT, RESPONSE), abs=1e-4)


def test_code_of_another_repository_runs_at_a_commit_of_that(hub_here, tmp_path):
    options, reference, _ = folders.armo(tmp_path / "model")
    code = publish(hub_here, "org/code", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    name = "LlamaForRewardModelWithGating"
    auto_map = {"AutoModelForSequenceClassification": f"org/code--modeling_custom.{name}"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    (tmp_path / "model" / "modeling_custom.py").unlink()
    commit = publish(hub_here, "org/model", tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"`code_revision` .* \(org/code\)"):
        RewardModel.from_pretrained("org/model", revision=commit, **options)
    reward_model = RewardModel.from_pretrained("org/model", revision=commit, code_revision=code, **options)
    assert reward_model([PROMPT], [RESPONSE]).item() == pytest.approx(reference(PROMPT, RESPONSE), abs=1e-4)


def test_pickle_on_the_hub_is_not_even_fetched(hub_here, tmp_path):
    folder = Path(saved(tmp_path / "model", tiny_classifier("llama"), tiny_tokenizer()))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    publish(hub_here, "org/model", folder)
    with pytest.raises(RewardModelError, match="runs the code it holds and is not loaded"):
        RewardModel.from_pretrained("org/model")
    assert not list((tmp_path / "cache here").rglob("*.bin"))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../../../model.safetensors"])
def test_index_on_the_hub_names_safetensors_of_its_own_repository_alone(file, hub_here, tmp_path):
    folder = Path(saved(tmp_path / "model", tiny_classifier("llama"), tiny_tokenizer()))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {"score.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    publish(hub_here, "org/model", folder)
    with pytest.raises(RewardModelError, match="must be safetensors beside"):
        RewardModel.from_pretrained("org/model")


@pytest.mark.uses_global_rng
class TestAdapters:
    def published(self, hub, tmp_path, base):
        merged = saved_adapter(tmp_path, "SEQ_CLS")
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
        publish(hub, "org/base", tmp_path / "base")
        return merged, publish(hub, "org/adapter", tmp_path / "adapter")

    @pytest.mark.skipif(ADAPTERS_OF_5_17, reason="refused under transformers 5.17: tests/rewards/test_loading.py")
    def test_adapter_at_a_commit_finds_its_base_model(self, hub_here, tmp_path):
        merged, commit = self.published(hub_here, tmp_path, "org/base")
        for revision in (None, commit):
            loaded = RewardModel.from_pretrained("org/adapter", revision=revision, num_labels=1)
            expected = RewardModel(merged, tiny_tokenizer())([PROMPT], [RESPONSE])
            assert torch.allclose(loaded([PROMPT], [RESPONSE]), expected, rtol=0, atol=1e-4)

    def test_adapter_names_no_folder_of_the_reader(self, hub_here, tmp_path):
        self.published(hub_here, tmp_path, str(tmp_path / "base"))
        with pytest.raises(RewardModelError, match="must name its base model by a Hub id"):
            RewardModel.from_pretrained("org/adapter", num_labels=1)

    def test_adapter_that_is_a_pickle_is_refused(self, hub_here, tmp_path):
        saved_adapter(tmp_path, "SEQ_CLS")
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
        publish(hub_here, "org/adapter", tmp_path / "adapter")
        with pytest.raises(RewardModelError, match=r"got no adapter_model\.safetensors"):
            RewardModel.from_pretrained("org/adapter", num_labels=1)
