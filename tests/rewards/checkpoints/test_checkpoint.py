"""Test that a checkpoint cannot make its reader load a pickle, run code unasked or read files from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_itp.errors import ArgumentError, LoadError, RewardModelError
from hf_itp.rewards import ProcessRewardModel, RewardModel
from hf_itp.rewards.checkpoints.checkpoint import Checkpoint, check_code
from tests.rewards.checkpoints.layouts import folders
from tests.rewards.classifiers import saved, saved_adapter, tiny_classifier
from tests.tiny import tiny_tokenizer

COMMIT = "0123456789abcdef" * 2 + "01234567"
CONVERT = "Convert (it|them)"


class Harmful:
    """Object that writes `harm` into the folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.write_text, (self.folder / "harm", "done")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    saved(path, tiny_classifier("llama"), tiny_tokenizer())
    return path


def edit(folder, file="config.json", **entries):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder, reason, error=RewardModelError, **options):
    with pytest.raises(error, match=reason):
        RewardModel.from_pretrained(str(folder), **options)
    assert not list(folder.rglob("harm"))


def put_pickle(folder, name="pytorch_model.bin"):
    torch.save({"score.weight": Harmful(folder)}, folder / name)


@pytest.mark.parametrize("kind", [RewardModel, ProcessRewardModel])
def test_pickle_is_never_loaded(kind, folder):
    (folder / "model.safetensors").unlink()
    put_pickle(folder)
    edit(folder, architectures=["LlamaForTokenClassification" if kind is ProcessRewardModel else ""])
    options = {"step_token": "yes"} if kind is ProcessRewardModel else {}
    with pytest.raises(RewardModelError, match=CONVERT):
        kind.from_pretrained(str(folder), **options)
    assert not (folder / "harm").exists()


def test_pickle_beside_safetensors_is_left_alone(folder):
    put_pickle(folder)
    assert RewardModel.from_pretrained(str(folder))(["how"], ["yes"]).shape == (1,)
    assert not (folder / "harm").exists()


def test_pickle_is_not_loaded_on_request_either(folder):
    put_pickle(folder)
    refused(folder, "`use_safetensors` must be True, got False", ArgumentError, use_safetensors=False)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "../model.safetensors", "/etc/x.safetensors", "a/b.safetensors"]
)
def test_index_names_safetensors_of_its_own_folder_alone(file, folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors").unlink()
    put_pickle(folder)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny_classifier("llama").state_dict(), file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, f"must be safetensors beside .* {CONVERT}")


def test_index_of_shards_is_followed(folder):
    expected = RewardModel.from_pretrained(str(folder))(["how"], ["yes"])
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny_classifier("llama").state_dict(), "part-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(RewardModel.from_pretrained(str(folder))(["how"], ["yes"]), expected)


@pytest.mark.parametrize("file", ["adapter_model.bin", "../model.safetensors"])
def test_configuration_names_no_other_weights(file, folder):
    put_pickle(folder, "adapter_model.bin")
    edit(folder, transformers_weights=file)
    refused(folder, f"must be safetensors beside .* {CONVERT}")


@pytest.mark.uses_global_rng
def test_adapter_is_no_pickle_and_its_base_is_none(tmp_path):
    saved_adapter(tmp_path, "SEQ_CLS")
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}}))
    refused(adapter, CONVERT, num_labels=1)
    index.unlink()
    (adapter / "adapter_model.safetensors").unlink()
    put_pickle(adapter, "adapter_model.bin")
    refused(adapter, f"no adapter_model.safetensors. {CONVERT}", num_labels=1)


def test_configuration_asks_for_no_kernel(folder):
    edit(folder, attn_implementation="someone/kernel")
    refused(folder, "asks for a kernel from the Hub, 'someone/kernel'.* Pass `attn_implementation")
    assert RewardModel.from_pretrained(str(folder), attn_implementation="sdpa").model.config.model_type == "llama"


HARMFUL_CODE = "from pathlib import Path\nPath(__file__).with_name('harm').write_text('done')\nraise ImportError"


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForSequenceClassification": "code.Model"},
        {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
        {"AutoConfig": "code.Config"},
    ],
)
def test_code_in_a_local_folder_is_not_run_unasked(auto_map, folder):
    (folder / "code.py").write_text(HARMFUL_CODE)
    edit(folder, auto_map=auto_map, model_type="remote", architectures=["Remote"])
    reason = "brings code of its own|neither transformers nor the checkpoint holds|does not recognize"
    refused(folder, reason)
    with pytest.raises(RewardModelError, match=reason):
        ProcessRewardModel.from_pretrained(str(folder), step_token="yes")
    assert not (folder / "harm").exists()


def test_code_that_is_not_needed_is_not_run_even_where_it_may(tmp_path):
    options, reference, _ = folders.qwen_reward(tmp_path / "qwen")
    reward_model = RewardModel.from_pretrained(str(tmp_path / "qwen"), trust_remote_code=True, **options)
    assert reward_model(["how"], ["yes"]).item() == pytest.approx(reference("how", "yes"), abs=1e-4)


def test_code_of_the_tokenizer_is_not_run_unasked(folder):
    (folder / "code.py").write_text(HARMFUL_CODE)
    edit(
        folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]}, tokenizer_class="Own"
    )
    with pytest.raises((LoadError, RewardModelError), match=r"trust_remote_code|Pass `tokenizer=`"):
        RewardModel.from_pretrained(str(folder))
    assert RewardModel.from_pretrained(str(folder), tokenizer=tiny_tokenizer())(["how"], ["yes"]).shape == (1,)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc1234", COMMIT.upper(), COMMIT + "0"])
@pytest.mark.parametrize("kind", [RewardModel, ProcessRewardModel])
def test_code_from_the_hub_runs_at_a_commit_only(kind, revision):
    options = {"step_token": "x"} if kind is ProcessRewardModel else {}
    with pytest.raises(ArgumentError, match=r"`revision` must be a commit \(40 hexadecimal digits\)"):
        kind.from_pretrained("org/custom", trust_remote_code=True, revision=revision, **options)
    with pytest.raises(LoadError, match="could not be loaded"):
        kind.from_pretrained("org/custom", trust_remote_code=True, revision=COMMIT, **options)


@pytest.mark.parametrize(
    "reference", ["/srv/code.Model", "../code.Model", "code.Model; x", "a/b--../code.Model", "code"]
)
def test_code_lies_beside_the_weights(reference, folder):
    edit(folder, auto_map={"AutoModelForSequenceClassification": reference})
    refused(folder, r"must lie beside its weights, .* Do not run it", trust_remote_code=True)


def test_code_of_another_repository_needs_a_commit_of_that():
    checkpoint = Checkpoint("name", "folder", code={"AutoModel": "org/other--modeling.Model"})
    for revision in (None, "main"):
        with pytest.raises(ArgumentError, match=r"`code_revision` must be a commit .*\(org/other\)"):
            check_code(checkpoint, revision)
    check_code(checkpoint, COMMIT)


@pytest.mark.uses_global_rng
def test_code_under_an_adapter_is_refused(tmp_path):
    saved_adapter(tmp_path, "SEQ_CLS")
    edit(tmp_path / "base", auto_map={"AutoModelForSequenceClassification": "code.Model"})
    refused(tmp_path / "adapter", "Merge it into its base model", trust_remote_code=True, num_labels=1)


def test_description_that_is_no_object_is_an_error(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(LoadError, match="does not hold an object"):
        RewardModel.from_pretrained(str(folder))
