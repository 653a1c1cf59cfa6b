"""Test that a push keeps what training wrote, and that nothing that is pushed names a folder of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftConfig
from transformers import AutoModelForCausalLM

from hf_itp import RewardCalibrator
from hf_itp.calibration.fingerprints import model_identity
from hf_itp.cli import main
from hf_itp.embedded.names import POLICY_ID
from hf_itp.errors import ArgumentError
from hf_itp.hub import CardFacts, policy_card
from hf_itp.hub.written_cards import read_card
from hf_itp.models.public_names import LOCAL
from hf_itp.training.run import TrainingRun
from tests.hub.test_cards import CALIBRATOR, ENTRY, FULL
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import left_padded_batch, saved_policy, tiny_tokenizer

REPO = "tester/policy"
PROMPTS = ["how do you bake bread", "what is salt for"]

pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it


@pytest.fixture
def places(tmp_path):
    """Save policy, reward model and prompts below one folder, whose name must not leave this machine."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    saved(tmp_path / "reward", tiny_classifier("llama"), tiny_tokenizer())
    saved_policy(tmp_path)
    return tmp_path


def run_of(places, *more, model="llama"):
    model = model if "/" in model else str(places / model)
    return TrainingRun.from_command_line(
        [
            "--model", model, "--reward_model", str(places / "reward"), "--train_file", str(places / "prompts.jsonl"),
            "--output_dir", str(places / "trained"), "--solver", "quantile_regression", "--num_reference", "8",
            "--transform", "identity", "--max_completion_length", "4", "--max_steps", "2", "--report_to", "none",
            "--use_cpu", "true", *more,
        ]
    )  # fmt: skip


def push(folder, *options, repo=REPO):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(folder), repo, *map(str, options)])
    return ended.value.code or 0


def card_of(hub, repo=REPO):
    return ModelCard(hub.files(repo)["README.md"].decode())


def named_folders(hub, places):
    """Return the files of all commits of all repositories that hold the folder's path."""
    found = {
        (name, path)
        for name, repository in hub.repositories.items()
        for commit in repository.commits
        for path, content in commit.files.items()
        if str(places).encode() in content
    }
    return sorted(found)


def test_card_keeps_what_training_and_people_wrote(hub_here, places, capfd):
    run_of(places, "--license", "mit").train()
    written = places / "trained" / "README.md"
    by_training = ModelCard(written.read_text())
    rows = [line for line in by_training.text.splitlines() if line.startswith("| ")]
    assert any("quantile" in row.lower() for row in rows) and "ctrl" in by_training.data.tags
    written.write_text(
        written.read_text().replace(
            "Written by", f"## Ethics\n\nAsk first.\n\n```bash\n## no heading\ncat {places}/x\n```\n\nWritten by"
        )
    )
    assert push(places / "trained", "--dataset", "org/prompts", "--limit", "Bread only.", "-n", "7",
                "-s", "best_of_n", "-r", "embedded") == 0  # fmt: skip
    card = card_of(hub_here)
    for row in rows:
        assert row.replace(str(places / "reward"), LOCAL) in card.text
    assert set(by_training.data.tags) <= set(card.data.tags) and card.data.license == "mit"
    assert "## Ethics\n\nAsk first." in card.text and "## no heading" in card.text and "Bread only." in card.text
    assert card.data.datasets == ["org/prompts"] and '"num_candidates": 7' in card.text
    assert card.text.count("## Limits") == card.text.count("## Ethics") == card.text.count("Written by hf-itp") == 1
    said = " ".join(capfd.readouterr().err.split())
    for left_out in ("the base model", "the policy of the calibration", "the reward model of the calibration"):
        assert left_out in said
    assert "--base-model" in said
    assert named_folders(hub_here, places) == []


def test_pushed_calibration_is_that_of_the_folder_without_its_names(hub_here, places):
    run_of(places).train()
    assert push(places / "trained", "--base-model", "org/base") == 0
    sidecar = json.loads(hub_here.files(REPO)["calibration.json"])
    assert sidecar["policy"]["name"] == sidecar["reward_model"]["name"] == LOCAL
    assert str(places) in (places / "trained" / "calibration.json").read_text(), "the folder's own is left as it is"
    # The weights say whose it is, as before.
    pulled = RewardCalibrator.from_pretrained(REPO)
    pulled.check_belongs(policy=model_identity(AutoModelForCausalLM.from_pretrained(places / "llama")))
    other = model_identity(AutoModelForCausalLM.from_pretrained(places / "trained"))
    with pytest.raises(ArgumentError, match="belong to this policy"):
        pulled.check_belongs(policy=other)
    # In another dtype nothing is known.
    pulled.check_belongs(policy={**other, "dtype": "bfloat16"})
    with pytest.warns(match="leaves out the policy and the reward model"):
        RewardCalibrator.from_pretrained(places / "trained").push_to_hub("tester/calibration")
    assert hub_here.files("tester/calibration")["calibration.json"] == hub_here.files(REPO)["calibration.json"]
    assert named_folders(hub_here, places) == []


@pytest.mark.parametrize("solver", ["rl", "quantile_regression"])
def test_trainers_own_pushes_name_no_folder(hub_here, places, solver):
    more = [
        "--push_to_hub", "true", "--hub_model_id", "tester/trained", "--save_strategy", "steps", "--save_steps", "1",
        "--hub_strategy", "every_save", "--hub_always_push", "true", "--solver", solver,
    ]  # fmt: skip
    with pytest.warns(match="leaves out the base model"):
        run_of(places, *more, "--eval_strategy", "no").train()
    repository = hub_here.repositories["tester/trained"]
    assert len(repository.commits) > 1 and "calibration.json" in repository.commits[-1].files
    assert "training_args.bin" in repository.commits[-1].files
    assert named_folders(hub_here, places) == []
    assert "ctrl" in card_of(hub_here, "tester/trained").data.tags


def test_base_licence_and_data_of_the_hub_are_stated(hub_here, places):
    files = {file.name: file.read_bytes() for file in (places / "llama").iterdir()}
    hub_here.publish("org/base", {**files, "README.md": b"---\nlicense: cc-by-4.0\n---\n# base\n"})
    hub_here.publish("org/prompts", {"README.md": b"---\nlicense: odbl\n---\n# prompts\n"})
    run_of(places, "--lora_r", "2", model="org/base").train()
    card = ModelCard((places / "trained" / "README.md").read_text())
    assert (card.data.base_model, card.data.license) == ("org/base", "cc-by-4.0")
    assert push(places / "trained", "--dataset", "org/prompts") == 0
    card = card_of(hub_here)
    assert (card.data.base_model, card.data.license) == ("org/base", "cc-by-4.0")
    assert "**Data**: org/prompts (odbl)" in card.text and "**Licence**: cc-by-4.0" in card.text
    assert push(places / "trained", "--license", "mit", repo="tester/other") == 0
    assert card_of(hub_here, "tester/other").data.license == "mit"
    assert named_folders(hub_here, places) == []


def embedded_stand_in(places):
    """Save a tiny policy where the embedded one would be built."""
    folder = places / "hf_itp" / "embedded" / "models" / "SmolLM2-135M-Instruct-0123456789abcdef"
    folder.parent.mkdir(parents=True)
    return shutil.copytree(places / "llama", folder)


def test_adapter_on_the_embedded_policy_names_its_base_on_the_hub(hub_here, places, capfd):
    embedded = embedded_stand_in(places)
    run_of(places, "--lora_r", "2", "--learning_rate", "1e-1", model=str(embedded)).train()
    config = json.loads((places / "trained" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(embedded), "here it loads without a network"
    assert push(places / "trained") == 0
    assert "trained on the embedded policy, a 4-bit rounding of" in " ".join(capfd.readouterr().err.split())
    config = json.loads(hub_here.files(REPO)["adapter_config.json"])
    assert config["base_model_name_or_path"] == POLICY_ID == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = card_of(hub_here)
    assert (card.data.base_model, card.data.license) == (POLICY_ID, "apache-2.0") and "ctrl" in card.data.tags
    assert named_folders(hub_here, places) == []

    hub_here.publish(POLICY_ID, {file.name: file.read_bytes() for file in embedded.iterdir()})
    assert PeftConfig.from_pretrained(REPO).base_model_name_or_path == POLICY_ID
    inputs = left_padded_batch([5])
    there, here = (AutoModelForCausalLM.from_pretrained(place) for place in (REPO, places / "trained"))
    base = AutoModelForCausalLM.from_pretrained(embedded)
    with torch.no_grad():
        logits, own, before = (model.eval()(**inputs).logits for model in (there, here, base))
    assert torch.equal(logits, own) and not torch.equal(logits, before)


def test_adapter_on_a_folder_is_refused_or_named_by_its_owner(hub_here, places, capfd):
    run_of(places, "--lora_r", "2").train()
    assert push(places / "trained") == 1
    assert "`--base-model`" in capfd.readouterr().err and not hub_here.repositories
    assert push(places / "trained", "--base-model", "org/base") == 0
    config = json.loads(hub_here.files(REPO)["adapter_config.json"])
    assert config["base_model_name_or_path"] == "org/base"
    assert named_folders(hub_here, places) == []
    run = run_of(places, "--lora_r", "2", "--push_to_hub", "true", "--hub_model_id", "tester/trained")
    with pytest.raises(ArgumentError, match="whose base model is on the Hub"):
        run._trainer()


def test_pushing_again_makes_no_commit(hub_here, places):
    run_of(places).train()
    assert push(places / "trained") == push(places / "trained") == 0
    assert len(hub_here.repositories[REPO].commits) == 2  # the repository's own and one push


def test_card_of_another_tool_is_kept_in_full(hub_here, places):
    (places / "llama" / "README.md").write_text(
        "---\nbase_model: org/base\ntags: [trl, rloo]\nlicense: mit\nlicence: license\n---\n\n# Model card of mine\n\n"
        f"A fine-tune of org/base, by /home/somebody/run.\n\n## Results\n\nGood.\n\n## Citations\n\nSee {places}.\n"
    )
    assert push(places / "llama") == 0
    card = card_of(hub_here)
    assert {"trl", "rloo", "hf-itp"} <= set(card.data.tags)
    assert (card.data.base_model, card.data.license) == ("org/base", "mit")
    assert f"## About\n\nA fine-tune of org/base, by {LOCAL}." in card.text
    assert "## Results (before this push)\n\nGood." in card.text and f"## Citations\n\nSee {LOCAL}." in card.text
    assert "# Model card of mine" not in card.text and "# policy" in card.text


@pytest.mark.parametrize("text", ["", "no metadata", "---\ntags: [a\n---\n# x\n\n## Use\n\nSo.\n", "---\n---\n"])
def test_card_that_is_hardly_one_is_read(text):
    facts = read_card(text)
    assert facts.training == {} and ("Use" in facts.sections) == ("## Use" in text)


def test_card_reads_back_as_it_was_written():
    """Every fact of a full card; the picture is a file, which is not there."""
    sections = {"Ethics": "Ask first.", "Thanks": "To all."}
    facts = CardFacts(**{**vars(FULL), "sections": sections})
    read = read_card(str(policy_card(facts, ENTRY, CALIBRATOR)))
    for name in ("base_model", "license", "language", "datasets", "training", "results", "results_on", "limits"):
        assert getattr(read, name) == getattr(facts, name), name
    assert read.sections == sections and set(facts.extra_tags) <= set(read.extra_tags)
    again = facts.filled_from(read)
    assert (
        str(policy_card(again, ENTRY, CALIBRATOR)).split("---")[2]
        == str(policy_card(facts, ENTRY, CALIBRATOR)).split("---")[2]
    )


def test_card_names_no_folder_whatever_it_is_told(places):
    facts = CardFacts(
        "org/policy", base_model=str(places / "llama"), training={"reward model": f"mean({places}/a, org/b)"},
        results_on=f"{places}/prompts.jsonl", limits=[f"As in {places}."], sections={"Notes": "of org/b"},
        results=[{"name": "win rate", "value": 0.5}],
    )  # fmt: skip
    text = str(policy_card(facts, {}))
    assert str(places) not in text and "mean(a local folder, org/b)" in text


def test_trainers_card_states_what_it_is_asked_to(places):
    trainer = run_of(places)._trainer()
    trainer.create_model_card(license="mit", dataset_name="org/prompts", tags=["bread"], finetuned_from="org/base")
    card = ModelCard((places / "trained" / "README.md").read_text())
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "org/base", ["org/prompts"])
    assert {"bread", "ctrl"} <= set(card.data.tags)
    with pytest.raises(ArgumentError, match="`tasks` must be left out"):
        trainer.create_model_card(tasks="text-generation")


def test_arguments_of_a_checkpoint_hold_no_folder(places):
    trainer = run_of(places, "--save_strategy", "steps", "--save_steps", "1")
    trainer.train()
    for file in ("trained/training_args.bin", "trained/checkpoint-1/training_args.bin"):
        assert str(places).encode() not in (places / file).read_bytes()
        kept = torch.load(places / file, weights_only=False)
        assert Path(kept.output_dir) == Path("trained") and kept.learning_rate == trainer.args.learning_rate
