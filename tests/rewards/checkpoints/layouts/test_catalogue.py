"""
Test every family in the table of `docs/reward_models.md`, and no other.

A family loads from a folder as it would from the Hub and gives its authors' rewards, or is refused with the reason.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from hf_itp.errors import ArgumentError, RewardModelError
from hf_itp.models.host_names import ADAPTERS_OF_5_17
from hf_itp.rewards import ProcessRewardModel, RewardModel
from hf_itp.rewards.checkpoints import layouts
from tests.rewards.checkpoints.layouts import folders
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

ROOT = Path(__file__).parents[4]
PROMPT = "how do you bake bread"
RESPONSES = ["use good flour\n\nmix cold water and salt\n\nbake", "no", "keep it cold\n\nlet it rise"]

LOADS = {
    "Skywork-Reward-V2 on Llama, FsfairX": folders.decoder("llama"),
    "Skywork-Reward-V2 on Qwen3": folders.decoder("qwen3"),
    "Qwen2 classifiers": folders.decoder("qwen2"),
    "RM-Mistral": folders.decoder("mistral"),
    "Skywork-Reward-Gemma-2": folders.decoder("gemma2"),
    "GPT-NeoX classifiers": folders.decoder("gpt_neox"),
    "GPT-2 classifiers": folders.decoder("gpt2"),
    "TRL's RewardTrainer on plain text": folders.plain_text,
    "OpenAssistant deberta": folders.encoder("deberta-v2"),
    "BERT classifiers": folders.encoder("bert"),
    "RoBERTa classifiers": folders.encoder("roberta"),
    "ModernBERT classifiers": folders.encoder("modernbert"),
    "Several labels (help, truth, style)": folders.multi_label,
    "LoRA adapters with their head": folders.adapter,
    "OpenRLHF": folders.open_rlhf("score"),
    "OpenRLHF, older and normalizing": folders.open_rlhf("value_head", mean=0.75, std=2.5),
    "OpenAssistant pythia": folders.pythia,
    "Qwen2.5-Math-RM, WorldPM": folders.qwen_reward,
    "ArmoRM, QRM": folders.armo,
    "internlm2-reward": folders.internlm,
    "Qwen2.5-Math-PRM": folders.qwen_process,
    "TRL's PRMs": folders.trl_process,
    "Math-Shepherd": folders.math_shepherd,
    "RLHFlow's PRMs": folders.rlhflow_process,
}
PROCESS = {"Qwen2.5-Math-PRM", "TRL's PRMs", "Math-Shepherd", "RLHFlow's PRMs"}


def language_model(folder):
    saved(folder, tiny_model("llama"), tiny_tokenizer())


def value_head(folder):
    model = tiny_model("qwen2")
    head = folders.random_weights(0, v_head__summary__weight=(1, 32), v_head__summary__bias=(1,))
    folders.write(folder, folders.config_of(model), model.state_dict() | head)


def claiming(architecture, **entries):
    """Return a function that saves a Llama reward model that says it is of another class."""

    def build(folder):
        saved(folder, tiny_classifier("llama"), tiny_tokenizer())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]} | entries))

    return build


def pickled(folder):
    saved(folder, tiny_classifier("llama"), tiny_tokenizer())
    (folder / "model.safetensors").unlink()
    torch.save(tiny_classifier("llama").state_dict(), folder / "pytorch_model.bin")


REFUSED = {
    "Language models, RLHFlow pair-preference": (language_model, r"so its rewards would be random\. Pass a model"),
    "Value heads (Skywork-o1-PRM, TRL 0.x)": (
        value_head,
        r"`v_head\.summary\.bias`, is of an unknown kind .* Convert it",
    ),
    "PairRM": (claiming("DebertaV2PairRM"), r"compares two responses .* plays a tournament"),
    "PKU beaver cost": (claiming("LlamaForScore", score_type="cost"), r"higher is worse.* the negated cost"),
    "PKU beaver reward, INF-ORM, Athene, UltraRM": (
        claiming("INFORMForSequenceClassification"),
        r"of a class that neither transformers nor the checkpoint holds\. Pass a callable",
    ),
    "Pickles (`pytorch_model.bin`)": (pickled, r"runs the code it holds and is not loaded\. Convert it"),
}


# peft draws from the global generator.
FAMILIES = [pytest.param(name, marks=[pytest.mark.uses_global_rng] * name.startswith("LoRA")) for name in LOADS]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_family_gives_its_authors_rewards(name, tmp_path):
    if ADAPTERS_OF_5_17 and name == "LoRA adapters with their head":
        pytest.skip("refused under transformers 5.17: tests/rewards/test_loading.py")
    folder = tmp_path / "checkpoint"
    options, reference, other_folder = LOADS[name](folder)
    reward_model = (ProcessRewardModel if name in PROCESS else RewardModel).from_pretrained(
        str(other_folder or folder), **options
    )
    rewards = reward_model([PROMPT] * len(RESPONSES), RESPONSES)
    expected = [reference(PROMPT, response) for response in RESPONSES]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01
    assert torch.allclose(reward_model([PROMPT] * 3, RESPONSES[::-1]).flip(0), rewards, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_family_is_refused_with_the_reason(name, tmp_path):
    build, reason = REFUSED[name]
    build(tmp_path)
    with pytest.raises(RewardModelError, match=reason):
        RewardModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["ArmoRM, QRM", "internlm2-reward"])
def test_code_of_a_folder_runs_only_where_the_caller_allows_it(name, tmp_path):
    LOADS[name](tmp_path)
    with pytest.raises(RewardModelError, match=r"brings code of its own.* then pass `trust_remote_code=True`"):
        RewardModel.from_pretrained(str(tmp_path))


def test_labels_are_never_chosen_silently(tmp_path):
    folders.multi_label(tmp_path)
    with pytest.raises(ArgumentError, match=r"which of the 3 labels .*0 \('help'\)"):
        RewardModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", sorted(PROCESS))
def test_model_of_steps_is_refused_as_one_of_responses(name, tmp_path):
    LOADS[name](tmp_path)
    with pytest.raises(RewardModelError, match="`ProcessRewardModel"):
        RewardModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["BERT classifiers", "Qwen2.5-Math-RM, WorldPM"])
def test_model_of_responses_is_refused_as_one_of_steps(name, tmp_path):
    LOADS[name](tmp_path)
    with pytest.raises(RewardModelError, match=r"judges no steps. Load it with `RewardModel"):
        ProcessRewardModel.from_pretrained(str(tmp_path), step_token="then")


def test_language_model_of_steps_needs_its_two_answers(tmp_path):
    folders.math_shepherd(tmp_path)
    with pytest.raises(RewardModelError, match="Pass `good_token` and `bad_token`"):
        ProcessRewardModel.from_pretrained(str(tmp_path), step_token=" out")


def test_new_family_is_one_file_in_the_folder(tmp_path, monkeypatch):
    family = tmp_path / "code" / "new_family.py"
    family.parent.mkdir()
    family.write_text(
        "from transformers import LlamaForSequenceClassification\n"
        "from hf_itp.rewards.checkpoints.checkpoint import Layout\n"
        "def reward_layout(checkpoint):\n"
        "    if checkpoint.architecture == 'NewRewardModel':\n"
        "        return Layout(LlamaForSequenceClassification, {'key_mapping': {r'^new_head\\.': 'score.'}})\n"
    )
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(family.parent)])
    model = tiny_classifier("llama")
    weights = {name.replace("score.", "new_head."): weight for name, weight in model.state_dict().items()}
    config = folders.config_of(model, architectures=["NewRewardModel"], num_labels=1)
    folders.write(tmp_path / "checkpoint", config, weights, tiny_tokenizer())
    try:
        rewards = RewardModel.from_pretrained(str(tmp_path / "checkpoint"))([PROMPT] * 3, RESPONSES)
    finally:
        sys.modules.pop(f"{layouts.__name__}.new_family", None)
    assert torch.allclose(rewards, RewardModel(model, tiny_tokenizer())([PROMPT] * 3, RESPONSES), rtol=0, atol=1e-5)


def test_table_of_the_documents_lists_what_is_tested_and_nothing_else():
    document = (ROOT / "docs" / "reward_models.md").read_text()
    table = document.split("\n## ")[0]
    named = re.findall(r"^\| ([^|]+?) \|", table, flags=re.MULTILINE)
    rows = [name for name in named if name not in ("family", "---")]
    assert len(rows) >= 15
    assert rows == [*LOADS, *REFUSED]
