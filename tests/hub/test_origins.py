"""Test that what belongs to a model is loaded from the model's own commit, folder or adapter, not from main."""

from __future__ import annotations

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM
from transformers.modeling_utils import PreTrainedModel

import hf_itp
from hf_itp.calibration.fingerprints import model_identity, reward_identity
from hf_itp.errors import LoadError
from hf_itp.hub.push import push_to_hub
from hf_itp.hub.reward_reference import reward_reference
from hf_itp.models.origins import origin_of
from hf_itp.policies.checks import policy_tokenizer
from hf_itp.rewards import RewardModel, as_reward_function
from tests.hub.server import TOKEN
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

INPUTS = left_padded_batch([5])


def other_tokenizer():
    """Return a tokenizer with another word for every id from 10 on."""
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    state["model"]["vocab"] = {word if index < 10 else word.upper(): index for word, index in words.items()}
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def files(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def read_by(policy):
    """Return the texts a reward is given, and the same tokens decoded by both tokenizers."""
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend(completions)
        return [0.0] * len(completions)

    output = policy.generate(
        **INPUTS, prompts=["how"], strategy="best_of_n", reward_model=reward, num_candidates=3, seed=1,
        max_new_tokens=12, return_dict_in_generate=True,
    )  # fmt: skip
    rows = [candidate for prompt in output.candidates for candidate in prompt]
    return seen, *([t.decode(row, skip_special_tokens=True) for row in rows] for t in BOTH)


BOTH = tiny_tokenizer(), other_tokenizer()


def assert_reads(policy, which):
    texts, *decoded = read_by(policy)
    assert [text.strip() for text in texts] == decoded[which]
    assert decoded[0] != decoded[1]


@pytest.fixture
def two_commits(hub_here, tmp_path):
    """Publish a policy at two commits with the same weights, the later one with another tokenizer."""
    first = hub_here.publish("org/policy", files(save(tmp_path / "a", tiny_model("llama"), BOTH[0])))
    second = hub_here.publish("org/policy", files(save(tmp_path / "b", tiny_model("llama"), BOTH[1])))
    return first, second


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, LlamaForCausalLM])
def test_two_commits_of_one_repository_are_read_each_by_its_own_tokenizer(two_commits, loader):
    old, new = loader.from_pretrained("org/policy", revision=two_commits[0]), loader.from_pretrained("org/policy")
    for _ in range(2):
        assert_reads(old, 0)
        assert_reads(new, 1)
    assert [model_identity(model)["revision"] for model in (old, new)] == list(two_commits)
    assert_reads(copy.deepcopy(old), 0)


def test_branch_that_moves_on_does_not_move_what_was_loaded(hub_here, two_commits, tmp_path):
    policy = AutoModelForCausalLM.from_pretrained("org/policy")
    hub_here.publish("org/policy", files(save(tmp_path / "c", tiny_model("llama", seed=1), BOTH[0])))
    AutoModelForCausalLM.from_pretrained("org/policy")
    assert_reads(policy, 1)
    assert model_identity(policy)["revision"] == two_commits[1]


def test_threads_that_ask_for_one_tokenizer_load_it_once(hub_here, two_commits):
    models = [AutoModelForCausalLM.from_pretrained("org/policy", revision=commit) for commit in two_commits * 2]
    start = threading.Barrier(4)

    def ask(model):
        start.wait()
        return policy_tokenizer(model)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, models))
    assert found[0] is found[2] and found[1] is found[3] and found[0] is not found[1]
    assert [t.decode([30]) for t in found[:2]] == [t.decode([30]) for t in BOTH]
    fetched = [path for method, path in hub_here.requests if method == "GET" and path.endswith("/tokenizer.json")]
    assert len(fetched) == 2


def test_private_repository_is_read_with_the_token_of_the_model(hub_here, two_commits, monkeypatch):
    hub_here.repositories["org/policy"].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    policy = AutoModelForCausalLM.from_pretrained("org/policy", revision=two_commits[0], token=TOKEN)
    assert_reads(policy, 0)
    assert TOKEN not in repr(vars(policy))


def test_subfolder_and_cache_of_the_model_hold_for_its_tokenizer(hub_here, tmp_path):
    held = files(save(tmp_path / "a", tiny_model("llama"), BOTH[1]))
    inner = {f"inner/{name}": content for name, content in held.items()}
    hub_here.publish("org/nested", inner | files(save(tmp_path / "b", tiny_model("llama", seed=1), BOTH[0])))
    options = {"subfolder": "inner", "cache_dir": tmp_path / "elsewhere"}
    assert_reads(AutoModelForCausalLM.from_pretrained("org/nested", **options), 1)
    assert not (tmp_path / "cache here" / "models--org--nested" / "snapshots").exists()
    # Only weights in the subfolder.
    bare = {name: content for name, content in inner.items() if "token" not in name and "chat" not in name}
    hub_here.publish("org/bare", bare | files(save(tmp_path / "c", tiny_model("llama", seed=1), BOTH[0])))
    assert_reads(AutoModelForCausalLM.from_pretrained("org/bare", subfolder="inner"), 0)


def test_folder_saved_again_is_read_again(tmp_path):
    folder = save(tmp_path / "policy", tiny_model("llama"), BOTH[0])
    assert_reads(AutoModelForCausalLM.from_pretrained(folder), 0)
    save(folder, tiny_model("llama"), BOTH[1])
    assert_reads(AutoModelForCausalLM.from_pretrained(folder), 1)


# peft draws the adapter's first weights from torch's global random numbers.
@pytest.mark.uses_global_rng
class TestAdapters:
    def adapted(self, base):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)

    @pytest.fixture
    def folders(self, tmp_path):
        base = save(tmp_path / "base", tiny_model("llama"), BOTH[0])
        self.adapted(base).save_pretrained(tmp_path / "adapter")
        return base, tmp_path / "adapter"

    @pytest.mark.parametrize("own", [True, False])
    def test_adapters_tokenizer_comes_before_its_bases(self, folders, own):
        base, adapter = folders
        if own:
            BOTH[1].save_pretrained(adapter)
        assert_reads(AutoModelForCausalLM.from_pretrained(adapter), int(own))
        assert_reads(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter), int(own))
        late = AutoModelForCausalLM.from_pretrained(base)
        late.load_adapter(str(adapter))
        assert_reads(late, int(own))

    def test_active_adapter_decides(self, folders, tmp_path):
        base, adapter = folders
        BOTH[1].save_pretrained(adapter)
        self.adapted(base).save_pretrained(tmp_path / "second")
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, adapter_name="first")
        policy.load_adapter(tmp_path / "second", "second")
        assert_reads(policy, 1)
        policy.set_adapter("second")
        assert_reads(policy, 0)

    def test_adapter_made_in_memory_speaks_as_its_base(self, folders):
        assert_reads(self.adapted(folders[0]), 0)

    @pytest.mark.parametrize("by", ["transformers", "peft"])
    def test_adapter_on_the_hub_at_a_commit(self, folders, hub_here, by):
        base, adapter = folders
        BOTH[1].save_pretrained(adapter)
        hub_here.publish("org/base", files(base))
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/base"}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        old = hub_here.publish("org/adapter", files(adapter))
        BOTH[0].save_pretrained(adapter)
        hub_here.publish("org/adapter", files(adapter))
        for revision, which in ((old, 1), ("main", 0)):
            if by == "peft":
                model = AutoModelForCausalLM.from_pretrained("org/base")
                policy = PeftModel.from_pretrained(model, "org/adapter", revision=revision)
            else:
                policy = AutoModelForCausalLM.from_pretrained(
                    "org/adapter", adapter_kwargs={"revision": revision}
                )  # fmt: skip
            assert_reads(policy, which)


@pytest.fixture
def two_reward_commits(hub_here, tmp_path):
    first = saved(tmp_path / "first", tiny_classifier("llama"), BOTH[0])
    second = saved(tmp_path / "second", tiny_classifier("llama"), BOTH[1])
    return [hub_here.publish("org/reward", files(folder)) for folder in (first, second)]


def test_reward_model_in_memory_is_served_and_named_at_its_own_commit(two_reward_commits):
    main = RewardModel.from_pretrained("org/reward")
    assert reward_reference(main) == ("org/reward", two_reward_commits[1])
    model = AutoModelForSequenceClassification.from_pretrained("org/reward", revision=two_reward_commits[0])
    reward = as_reward_function(model)
    assert reward.tokenizer.decode([30]) == BOTH[0].decode([30]) != BOTH[1].decode([30])
    assert reward_reference(reward) == reward_reference(model) == ("org/reward", two_reward_commits[0])
    assert reward_identity(reward)["revision"] == two_reward_commits[0]


def test_pushed_entry_names_the_commit_of_the_loaded_reward_model(hub_here, two_reward_commits):
    RewardModel.from_pretrained("org/reward")
    model = AutoModelForSequenceClassification.from_pretrained("org/reward", revision=two_reward_commits[0])
    reward = RewardModel(model, BOTH[0])
    push_to_hub(
        tiny_model("llama"), "tester/policy", tokenizer=tiny_tokenizer(), strategy="best_of_n", reward_model=reward
    )
    entry = json.loads(hub_here.files("tester/policy")["generation_config.json"])["hf_itp"]
    assert entry["reward_model_revision"] == two_reward_commits[0]


def test_model_loaded_before_anything_could_note_it_is_not_guessed_at(two_commits):
    hf_itp.disable()
    try:
        old = AutoModelForCausalLM.from_pretrained("org/policy", revision=two_commits[0])
        assert origin_of(old).commit == two_commits[0]  # the only one in the cache
        AutoModelForCausalLM.from_pretrained("org/policy")
    finally:
        hf_itp.enable()
    if getattr(old.config, "_commit_hash", None):  # transformers before 5.24 notes it; remove with these
        assert_reads(old, 0)
        assert model_identity(old)["revision"] == two_commits[0]
        return
    with pytest.raises(LoadError, match="is in the cache at 2 commits"):
        policy_tokenizer(old)
    assert model_identity(old)["revision"] is None


def test_wrappers_come_off_and_go_on_once():
    wrapped = vars(PreTrainedModel)["from_pretrained"]
    hf_itp.enable()
    assert vars(PreTrainedModel)["from_pretrained"] is wrapped
    hf_itp.disable()
    try:
        assert vars(PreTrainedModel)["from_pretrained"] is not wrapped
        assert not hasattr(PeftModel.load_adapter, "__wrapped__")
    finally:
        hf_itp.enable()
    assert hasattr(PeftModel.load_adapter, "__wrapped__")


def test_name_given_by_the_caller_is_the_one_that_counts(tmp_path):
    first, second = (save(tmp_path / name, tiny_model("llama"), t) for name, t in zip("ab", BOTH, strict=True))
    policy = AutoModelForCausalLM.from_pretrained(first)
    policy.name_or_path = str(second)
    assert_reads(policy, 1)


def test_weights_are_the_same_whoever_notes_where_they_are_from(two_commits):
    hf_itp.disable()
    try:
        plain = AutoModelForCausalLM.from_pretrained("org/policy").state_dict()
    finally:
        hf_itp.enable()
    noted = AutoModelForCausalLM.from_pretrained("org/policy").state_dict()
    assert all(torch.equal(noted[name], value) for name, value in plain.items())
