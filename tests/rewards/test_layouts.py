"""
Reward models of the Hub as they are: for each layout a tiny checkpoint with the same class, files and configuration,
which loads and scores as its authors' code does, or is refused with the reason. `docs/reward_models.md` lists them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForTokenClassification, LlamaModel

from hf_itp import RewardModel
from hf_itp.errors import ArgumentError, LoadError, RewardModelError
from hf_itp.rewards import ProcessRewardModel
from tests.architectures import config_arguments
from tests.rewards.classifiers import encoder_tokenizer, saved, tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent.parent
PROMPT, GOOD, BAD = "how do you bake bread", "use good flour and salt", "no idea"


def tokenizer_for(architecture):
    return encoder_tokenizer(architecture) if architecture in ("bert", "roberta", "deberta-v2") else tiny_tokenizer()


def checkpoint(folder, architecture, **options):
    return saved(folder, tiny_classifier(architecture, **options), tokenizer_for(architecture))


def edit_config(folder, **entries):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# Families of the Hub by the class and layout they share.
CLASSIFIERS = {
    "Skywork-Reward-V2 (Llama)": "llama",
    "Skywork-Reward-V2 (Qwen3)": "qwen3",
    "WorldPM and other Qwen2": "qwen2",
    "RM-Mistral, Eurus-like": "mistral",
    "Gemma2 (Skywork-Gemma)": "gemma2",
    "OpenAssistant pythia": "gpt_neox",
    "GPT-2": "gpt2",
    "OpenAssistant deberta": "deberta-v2",
    "BERT": "bert",
    "RoBERTa": "roberta",
}


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_plain_sequence_classifier_loads_as_it_is(family, tmp_path):
    folder = checkpoint(tmp_path, CLASSIFIERS[family])
    reward_model = RewardModel.from_pretrained(folder)
    rewards = reward_model([PROMPT, PROMPT], [GOOD, BAD])
    assert rewards.shape == (2,) and rewards[0] != rewards[1]
    alone = torch.cat([reward_model([PROMPT], [GOOD]), reward_model([PROMPT], [BAD])])
    torch.testing.assert_close(rewards, alone, rtol=0, atol=1e-5)


def test_several_labels_need_one_to_be_chosen(tmp_path):
    folder = checkpoint(tmp_path, "llama", num_labels=3, id2label={0: "help", 1: "truth", 2: "style"})
    with pytest.raises(ArgumentError, match=r"which of the 3 labels .*0 \('help'\)"):
        RewardModel.from_pretrained(folder)
    by_name = RewardModel.from_pretrained(folder, label="truth")([PROMPT], [GOOD])
    assert torch.equal(by_name, RewardModel.from_pretrained(folder, label=1)([PROMPT], [GOOD]))
    assert not torch.equal(by_name, RewardModel.from_pretrained(folder, label="style")([PROMPT], [GOOD]))


def test_normalizing_model_has_its_mean_and_deviation_taken_out(tmp_path):
    """OpenRLHF writes both into config.json."""
    folder = checkpoint(tmp_path, "llama")
    raw = RewardModel.from_pretrained(folder)([PROMPT, PROMPT], [GOOD, BAD])
    edit_config(folder, mean=0.75, std=2.5)
    normalized = RewardModel.from_pretrained(folder)([PROMPT, PROMPT], [GOOD, BAD])
    torch.testing.assert_close(normalized, (raw - 0.75) / 2.5)
    edit_config(folder, std=0.0)
    with pytest.raises(RewardModelError, match="`std` above 0"):
        RewardModel.from_pretrained(folder)


CUSTOM = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class ManyObjectives(ModelOutput):
    rewards: torch.Tensor = None
    score: torch.Tensor = None
    logits: torch.Tensor = None


class LlamaForRewardModelWithGating(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, 5, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        rewards = self.regression_layer(hidden[torch.arange(len(hidden)), last])
        return ManyObjectives(rewards=rewards, score=rewards.mean(-1), logits=rewards)
"""


def custom_checkpoint(folder):
    """ArmoRM's layout: several objectives, gated into one `score` by a class that comes with the repository."""
    config = AutoConfig.for_model("llama", **config_arguments("llama"))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        body, head = LlamaModel(config), torch.randn(5, config.hidden_size)
    weights = {f"model.{name}": value for name, value in body.state_dict().items()}
    folder.mkdir()
    config.architectures = ["LlamaForRewardModelWithGating"]
    config.auto_map = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    config.save_pretrained(folder)
    save_file({**weights, "regression_layer.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modeling_custom.py").write_text(CUSTOM)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_custom_head_runs_only_where_the_caller_allows_it_and_gives_its_score(tmp_path):
    folder = custom_checkpoint(tmp_path / "armo")
    with pytest.raises(RewardModelError, match="Read that code, then"):
        RewardModel.from_pretrained(folder)
    reward_model = RewardModel.from_pretrained(folder, trust_remote_code=True)
    rewards = reward_model([PROMPT, PROMPT], [GOOD, BAD])
    ids = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": GOOD}], return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = reward_model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).score
    torch.testing.assert_close(rewards[:1], expected, rtol=0, atol=1e-5)
    assert rewards[0] != rewards[1]


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc1234"])
def test_code_of_a_repository_needs_a_pinned_commit(revision):
    with pytest.raises(ArgumentError, match=r"`revision` has to be a commit \(40 hexadecimal digits\)"):
        RewardModel.from_pretrained("org/custom", trust_remote_code=True, revision=revision)
    with pytest.raises(ArgumentError, match="could change the code"):
        ProcessRewardModel.from_pretrained("org/custom", trust_remote_code=True, revision=revision, step_token="x")


def token_classifier(folder):
    """TRL's PRMs and Qwen2.5-Math-PRM: two labels at each token."""
    config = AutoConfig.for_model("llama", **(config_arguments("llama") | {"num_labels": 2}))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32).eval()
        torch.nn.init.normal_(model.score.weight)
    return model, saved(folder, model, tiny_tokenizer())


@pytest.mark.parametrize(("aggregate", "how"), [("min", torch.min), ("product", torch.prod), ("mean", torch.mean)])
def test_process_reward_model_reads_the_step_tokens(aggregate, how, tmp_path):
    model, folder = token_classifier(tmp_path)
    reward_model = ProcessRewardModel.from_pretrained(folder, step_token="</s>", aggregate=aggregate)
    response = "use flour\n\nmix water\n\nbake"
    tokenizer = tiny_tokenizer()
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    steps, ids = [], list(chat)
    for step in response.split("\n\n"):
        ids += [*tokenizer(step)["input_ids"], 2]
        with torch.no_grad():
            steps.append(model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[1])
    steps = torch.stack(steps)
    torch.testing.assert_close(reward_model.step_rewards([{"role": "user", "content": PROMPT}], response), steps)
    found = reward_model([[{"role": "user", "content": PROMPT}]], [response])
    torch.testing.assert_close(found[0], how(steps))


def test_language_model_that_answers_good_or_bad_is_a_process_reward_model(tmp_path):
    """Math-Shepherd's layout."""
    model = tiny_model("mistral")
    folder = saved(tmp_path, model, tiny_tokenizer())
    reward_model = ProcessRewardModel.from_pretrained(
        folder, step_token="out", good_token="yes", bad_token="no", aggregate="last"
    )
    tokenizer = tiny_tokenizer()
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    out, yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("out", "yes", "no"))
    ids = torch.tensor([[*chat, *tokenizer("mix water")["input_ids"], out]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    expected = logits[[yes, no]].softmax(-1)[0]
    torch.testing.assert_close(reward_model([[{"role": "user", "content": PROMPT}]], ["mix water"])[0], expected)
    with pytest.raises(RewardModelError, match="`good_token` has to be one token"):
        ProcessRewardModel.from_pretrained(folder, step_token="out", good_token="yes no", bad_token="no")
    with pytest.raises(ArgumentError, match="go together"):
        ProcessRewardModel.from_pretrained(folder, step_token="out", good_token="yes")


def test_process_reward_model_is_no_scalar_one_and_the_other_way_round(tmp_path):
    _, folder = token_classifier(tmp_path / "tokens")
    with pytest.raises(RewardModelError, match=r"judges steps.*ProcessRewardModel\.from_pretrained"):
        RewardModel.from_pretrained(folder)
    with pytest.raises(RewardModelError, match=r"does not hold|two labels"):
        ProcessRewardModel.from_pretrained(checkpoint(tmp_path / "scalar", "bert"), step_token="yes")


REFUSED = {
    "PairRM": ({"architectures": ["DebertaV2PairRM"]}, "compares two responses"),
    "RLHFlow pair-preference": ({"architectures": ["LlamaForPairPreference"]}, "compares two responses"),
    "PKU beaver reward and cost": ({"architectures": ["LlamaForScore"]}, "sign turned for costs"),
    "internlm2-reward": ({"architectures": ["InternLM2ForRewardModel"]}, "get_score"),
    "TRL's old value head": ({"architectures": ["AutoModelForCausalLMWithValueHead"]}, "old value head"),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_other_layouts_are_refused_with_the_reason(layout, tmp_path):
    entries, reason = REFUSED[layout]
    folder = checkpoint(tmp_path, "llama")
    edit_config(folder, **entries)
    with pytest.raises(RewardModelError, match=reason):
        RewardModel.from_pretrained(folder)


def test_language_model_without_a_head_is_refused(tmp_path):
    folder = saved(tmp_path, tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(RewardModelError, match="rewards would be random"):
        RewardModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", [RewardModel, ProcessRewardModel])
def test_pickle_is_never_loaded(kind, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "harm", "done"))

    folder = Path(checkpoint(tmp_path / "model", "llama"))
    (folder / "model.safetensors").unlink()
    torch.save({"score.weight": Harmful()}, folder / "pytorch_model.bin")
    options = {"step_token": "yes"} if kind is ProcessRewardModel else {}
    with pytest.raises((RewardModelError, LoadError), match=r"pickle|safetensors"):
        kind.from_pretrained(str(folder), **options)
    assert not (tmp_path / "harm").exists()


def test_freshly_initialized_head_is_refused(tmp_path):
    folder = Path(checkpoint(tmp_path, "llama"))
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name != "score.weight"},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    with pytest.raises(RewardModelError, match=r"does not hold `score\.weight`"):
        RewardModel.from_pretrained(str(folder))


def test_table_of_the_documents_lists_what_is_tested():
    table = (ROOT / "docs" / "reward_models.md").read_text()
    for name in [*CLASSIFIERS, *REFUSED]:
        for word in re.findall(r"[A-Za-z0-9.-]{4,}", name.split("(")[0])[:1]:
            assert word.lower() in table.lower(), name
