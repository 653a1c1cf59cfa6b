"""Test everything `reward_model=` takes, what stays loaded between calls, and a table of what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_itp.errors import ItpError
from hf_itp.rewards import CallableReward, RewardEnsemble, RewardModel, as_reward_function, clear_loaded_reward_models
from hf_itp.rewards.resolve import MAX_LOADED_MODELS
from tests.rewards.classifiers import pair_tokenizer, saved, tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

PROMPTS, RESPONSES = ["how do i bake", "see you"], ["use cold water", "yes"]


@pytest.fixture(autouse=True)
def nothing_loaded():
    clear_loaded_reward_models()
    yield
    clear_loaded_reward_models()


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "model", tiny_classifier("llama"), tiny_tokenizer())


def brevity(prompts, completions, **kwargs):
    return [-float(len(completion)) for completion in completions]


def test_folder_is_loaded(folder):
    expected = RewardModel(tiny_classifier("llama"), tiny_tokenizer())(PROMPTS, RESPONSES)
    for name in (folder, Path(folder)):
        assert torch.allclose(as_reward_function(name)(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


def test_loaded_model_is_served_with_its_own_tokenizer(folder):
    model = RewardModel.from_pretrained(folder).model
    reward = as_reward_function(model)
    assert reward.model is model
    assert reward.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_model_in_memory_is_served_with_the_tokenizer_given():
    reward = as_reward_function(tiny_classifier("bert"), tokenizer=pair_tokenizer(), unbatched=True)
    expected = RewardModel(tiny_classifier("bert"), pair_tokenizer())(PROMPTS, RESPONSES)
    assert torch.allclose(reward(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


def test_reward_function_is_returned_as_it_is():
    reward = CallableReward(brevity)
    assert as_reward_function(reward) is reward


def test_callable_is_wrapped():
    assert as_reward_function(brevity)(PROMPTS, RESPONSES).tolist() == [-14.0, -3.0]


def test_list_is_the_mean_of_its_members(folder):
    ensemble = as_reward_function([brevity, folder, CallableReward(brevity)], device="cpu")
    assert isinstance(ensemble, RewardEnsemble) and ensemble.aggregate == "mean"
    expected = (2 * CallableReward(brevity)(PROMPTS, RESPONSES) + as_reward_function(folder)(PROMPTS, RESPONSES)) / 3
    assert torch.allclose(ensemble(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


def test_name_is_loaded_once_per_set_of_options(folder):
    reward = as_reward_function(folder, max_length=20, unbatched=True)
    assert as_reward_function(folder, unbatched=True, max_length=20) is reward
    assert as_reward_function(folder, max_length=20) is not reward
    assert as_reward_function(folder, device="cpu") is as_reward_function(folder, device=torch.device("cpu"))


def test_options_that_cannot_be_hashed_are_told_apart_by_their_value(folder):
    everywhere = as_reward_function(folder, device_map={"": "cpu"})
    assert as_reward_function(folder, device_map={"": "cpu"}) is everywhere
    assert as_reward_function(folder) is not everywhere


def test_changed_folder_is_loaded_again(folder):
    before = as_reward_function(folder)
    changed = tiny_classifier("llama")
    with torch.no_grad():
        changed.score.weight.mul_(2)
    saved(Path(folder), changed)
    after = as_reward_function(folder)
    expected = 2 * before(PROMPTS, RESPONSES)
    assert torch.allclose(after(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-4)


def test_model_unused_for_longest_is_let_go(folder):
    lengths = [20 + extra for extra in range(MAX_LOADED_MODELS)]
    loaded = [as_reward_function(folder, max_length=length) for length in lengths]
    assert as_reward_function(folder, max_length=lengths[0]) is loaded[0]
    as_reward_function(folder, max_length=100)
    assert as_reward_function(folder, max_length=lengths[0]) is loaded[0]
    assert as_reward_function(folder, max_length=lengths[1]) is not loaded[1]


def test_clearing_lets_go_of_all(folder):
    reward = as_reward_function(folder)
    clear_loaded_reward_models()
    assert as_reward_function(folder) is not reward


def test_failed_load_is_tried_again(folder):
    with pytest.raises(ItpError):
        as_reward_function(folder, label=7)
    assert as_reward_function(folder, label=0).label == 0


def test_threads_asking_for_one_model_share_it(folder):
    rewards = []
    threads = [threading.Thread(target=lambda: rewards.append(as_reward_function(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(reward) for reward in rewards}) == 1


def two_labels():
    return tiny_classifier("llama", num_labels=2)


def llama():
    return tiny_classifier("llama")


BAD_INPUTS = [
    (lambda: None, {}, TypeError, "got NoneType. Pass one of these"),
    (lambda: 3, {}, TypeError, "got int. Pass one of these"),
    (lambda: RewardModel, {}, TypeError, "got the class RewardModel. Pass one of these"),
    (lambda: nn.Dropout(), {}, TypeError, "got Dropout. Pass the transformers model itself; merge a PEFT model"),
    (lambda: "", {}, ValueError, "got an empty name. Pass e.g. 'org/name'"),
    (lambda: "./nowhere", {}, OSError, "does not exist. Correct the path"),
    (lambda: "org/none-such", {"tokenizer": tiny_tokenizer()}, OSError, "Correct the id, check the connection"),
    (lambda: [], {}, ValueError, "got none. Pass a reward model"),
    (lambda: [brevity, None], {}, TypeError, "got NoneType. Pass one of these"),
    (lambda: brevity, {"max_length": 5}, ValueError, "`max_length` .* function, which would ignore it. Drop it"),
    (lambda: brevity, {"tokenizer": tiny_tokenizer()}, ValueError, "`tokenizer` .* which would ignore it. Drop it"),
    (lambda: CallableReward(brevity), {"label": 1}, ValueError, "`label` .* CallableReward, which would ignore it"),
    (llama, {}, OSError, r"Pass `RewardModel\(model, tokenizer\)`"),
    (llama, {"dtype": "float32"}, ValueError, "`dtype` must be an option .* Choose from batch_size, max_length"),
    (llama, {"tokenizer": "org/tokenizer"}, TypeError, "got a str. Load it with AutoTokenizer.from_pretrained"),
    (llama, {"tokenizer": tiny_tokenizer(), "label": 1}, ValueError, r"got 1. Choose one of 0 \('LABEL_0'\)"),
    (llama, {"tokenizer": tiny_tokenizer(), "label": True}, ValueError, "got True. Choose one of 0"),
    (two_labels, {"tokenizer": tiny_tokenizer()}, ValueError, "which of the 2 labels .* Choose one of 0"),
    (two_labels, {"tokenizer": tiny_tokenizer(), "label": "good"}, ValueError, "got 'good'. Choose one of 0"),
    (two_labels, {"tokenizer": tiny_tokenizer(), "label": -1}, ValueError, "got -1. Choose one of 0"),
    (llama, {"tokenizer": tiny_tokenizer(), "batch_size": 0}, ValueError, 'got 0. Or pass "auto"'),
    (llama, {"tokenizer": tiny_tokenizer(), "batch_size": "large"}, ValueError, "got 'large'. .*Or pass \"auto\""),
    (llama, {"tokenizer": tiny_tokenizer(), "max_length": 257}, ValueError, "from 1 to 256 .*, got 257. Leave room"),
    (llama, {"tokenizer": tiny_tokenizer(), "max_length": 0}, ValueError, "from 1 to 256 .*, got 0. Leave room"),
    (llama, {"tokenizer": tiny_tokenizer(), "max_length": 8.5}, ValueError, "got 8.5. .* leave it out"),
    (lambda: tiny_model("llama"), {"tokenizer": tiny_tokenizer()}, ValueError, "which has no reward head. Pass a"),
    (lambda: llama().model, {"tokenizer": tiny_tokenizer()}, ValueError, "which has no reward head. Pass a"),
]


@pytest.mark.parametrize(
    ("make_reward_model", "options", "builtin", "message"), BAD_INPUTS, ids=[row[3][:40] for row in BAD_INPUTS]
)
def test_bad_input_is_refused_with_its_remedy(make_reward_model, options, builtin, message):
    with pytest.raises(ItpError, match=message) as caught:
        as_reward_function(make_reward_model(), **options)
    assert isinstance(caught.value, builtin)
