"""Test a repository that cannot be reached: one request, one quick answer, and what the cache holds is used."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from hf_itp.errors import LoadError, RewardModelError
from hf_itp.policies.loading import load_policy_checkpoint
from hf_itp.rewards import RewardModel, as_reward_function, clear_loaded_reward_models
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

LOADERS: list[Callable] = [RewardModel.from_pretrained, as_reward_function, load_policy_checkpoint]


def files(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@contextmanager
def address(kind: str) -> Iterator[str]:
    """Yield an address where nobody listens, or where somebody listens and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def hub_at(where: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", where)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", where + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(hf_api.api, "endpoint", where)
        yield


@pytest.mark.parametrize("load", LOADERS)
def test_nobody_listens(load, hub_here):
    said = pytest.raises(LoadError, match=r"cannot be reached: http://127\.0\.0\.1:\d+ did not answer")
    with address("refuses") as where, hub_at(where), within(15), said:
        load("org/model")


@pytest.mark.slow
def test_somebody_listens_and_never_answers(hub_here):
    with address("hangs") as where, hub_at(where), within(15), pytest.raises(LoadError, match="cannot be reached"):
        RewardModel.from_pretrained("org/model")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_hub_that_is_down_says_so(status, hub_here):
    hub_here.faults.add("GET", ".*", status=status, times=999)
    with within(15), pytest.raises(LoadError, match=f"cannot be reached: .* answered {status}"):
        RewardModel.from_pretrained("org/model")
    asked = [path for _, path in hub_here.requests if "org/model" in path]
    assert set(asked) == {"/api/models/org/model"} and len(asked) <= 3


def test_hub_that_stumbles_once_is_asked_again(hub_here, tmp_path):
    hub_here.publish("org/model", files(saved(tmp_path / "model", tiny_classifier("llama"), tiny_tokenizer())))
    hub_here.faults.add("GET", "/api/models/org/model", status=503)
    assert RewardModel.from_pretrained("org/model")(["how"], ["yes"]).shape == (1,)


@pytest.mark.parametrize("load", LOADERS)
def test_repository_that_is_not_there_is_one_question(load, hub_here):
    with within(5), pytest.raises(LoadError, match=r"there is no 'org/nothing' on .* or it is private"):
        load("org/nothing")
    assert len([path for _, path in hub_here.requests if "org/nothing" in path]) == 1


def test_revision_that_is_not_there_is_named(hub_here, tmp_path):
    hub_here.publish("org/model", files(saved(tmp_path / "model", tiny_classifier("llama"), tiny_tokenizer())))
    with pytest.raises(LoadError, match="it has no revision 'v7'"):
        RewardModel.from_pretrained("org/model", revision="v7")


@pytest.mark.parametrize("kind", ["refuses", pytest.param("hangs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["branch", "commit"])
def test_what_the_cache_holds_is_used(kind, by, hub_here, tmp_path):
    commit = hub_here.publish("org/model", files(saved(tmp_path / "m", tiny_classifier("llama"), tiny_tokenizer())))
    hub_here.publish("org/policy", files(saved_policy(tmp_path)))
    revision = {"revision": commit} if by == "commit" else {}
    expected = as_reward_function("org/model", **revision)(["how"], ["yes"])
    load_policy_checkpoint("org/policy")
    clear_loaded_reward_models()
    with address(kind) as where, hub_at(where):
        with within(15):
            reward = as_reward_function("org/model", **revision)
        assert reward(["how"], ["yes"]).equal(expected) and reward.revision == commit
        with within(15):
            assert load_policy_checkpoint("org/policy").commit == hub_here.repositories["org/policy"].refs["main"]


def test_half_a_model_in_the_cache_is_not_taken_for_a_pickle(hub_here, tmp_path):
    held = files(saved(tmp_path / "m", tiny_classifier("llama"), tiny_tokenizer()))
    hub_here.publish("org/model", held)
    RewardModel.from_pretrained("org/model")
    for weights in (tmp_path / "cache here").rglob("model.safetensors"):
        weights.unlink()
    said = pytest.raises(LoadError, match="the cache does not hold all of it")
    with address("refuses") as where, hub_at(where), within(15), said as raised:
        RewardModel.from_pretrained("org/model")
    assert not isinstance(raised.value, RewardModelError)


def test_several_that_cannot_be_reached_fail_at_the_first(hub_here):
    with address("refuses") as where, hub_at(where), within(15), pytest.raises(LoadError, match="cannot be reached"):
        as_reward_function(["org/one", "org/two", "org/three"])


def test_threads_of_one_name_wait_no_longer_than_one(hub_here):
    with address("refuses") as where, hub_at(where), within(15), ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(RewardModel.from_pretrained, "org/model") for _ in range(4)]
        errors = [load.exception() for load in loads]
    assert all(isinstance(error, LoadError) for error in errors)


class TestPoliciesOfTheHub:
    def test_pickle_is_not_even_fetched_nor_a_conversion_asked_for(self, hub_here, tmp_path):
        held = files(saved_policy(tmp_path))
        held["pytorch_model.bin"] = held.pop("model.safetensors")
        hub_here.publish("org/policy", held)
        with pytest.raises(LoadError, match=r"A pickle such as pytorch_model\.bin"):
            load_policy_checkpoint("org/policy")
        assert not list((tmp_path / "cache here").rglob("*.bin"))
        paths = " ".join(path for _, path in hub_here.requests)
        assert "pytorch_model" not in paths and "discussions" not in paths and "refs" not in paths

    def test_model_and_tokenizer_are_of_one_commit_though_main_moves_between(self, hub_here, tmp_path, monkeypatch):
        from transformers import AutoTokenizer

        held = files(saved_policy(tmp_path))
        commit = hub_here.publish("org/policy", held)
        original = AutoTokenizer.from_pretrained
        other = held["tokenizer.json"].replace(b'"how"', b'"HOW"')

        def late(*args, **options):
            hub_here.publish("org/policy", {"tokenizer.json": other})
            return original(*args, **options)

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", late)
        loaded = load_policy_checkpoint("org/policy")
        assert (
            loaded.commit == commit and loaded.tokenizer.convert_tokens_to_ids("how") != loaded.tokenizer.unk_token_id
        )

    @pytest.mark.parametrize("instance", [False, True])
    def test_trainer_loads_policy_and_reference_as_safetensors_at_one_commit(self, instance, hub_here, tmp_path):
        from transformers import AutoModelForCausalLM

        from hf_itp.policies.loading import with_safe_loading
        from hf_itp.training import CTRLArguments

        held = files(saved_policy(tmp_path))
        commit = hub_here.publish("org/policy", held)
        model = AutoModelForCausalLM.from_pretrained("org/policy") if instance else "org/policy"
        held["pytorch_model.bin"] = held.pop("model.safetensors")
        args = CTRLArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
        found = with_safe_loading(model, args)
        assert args.model_init_kwargs is None
        assert found.model_init_kwargs == {"revision": commit, "use_safetensors": True}
        hub_here.repositories["org/policy"].commit("main", "a pickle", held, ["model.safetensors"])
        assert with_safe_loading(model, args).model_init_kwargs["revision"] == commit if instance else True
        with pytest.raises(LoadError, match=r"A pickle such as pytorch_model\.bin"):
            with_safe_loading("org/policy", args)
