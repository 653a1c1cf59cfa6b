"""Test that a push is one complete commit on the Hub, whatever was there and whatever the Hub does meanwhile."""

from __future__ import annotations

import json
import logging

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_itp import push_to_hub
from hf_itp.errors import ArgumentError, ArgumentTypeError, HubError
from hf_itp.hub import CardFacts, upload
from tests.hub.server import TOKEN
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

POLICY = "tester/policy"
RECOMMENDED = {"strategy": "pessimism", "beta": 0.4, "num_candidates": 6}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(upload, "_WAITS", (0.0, 0.0))


def push(model=None, repo=POLICY, **options):
    policy = tiny_model("llama") if model is None else model
    return push_to_hub(policy, repo, tokenizer=tiny_tokenizer(), **(RECOMMENDED | options))


def entry_of(hub, revision="main"):
    return json.loads(hub.files(POLICY, revision)["generation_config.json"])["hf_itp"]


def commits_made(hub):
    return len(hub.repositories[POLICY].commits) - 1  # less the repository's own


def test_recommendation_survives_models_without_a_generation_config(hub_here):
    """transformers drops unknown keys of a generation config that says it was derived from the model's config."""
    model = tiny_model("llama")
    model.generation_config = GenerationConfig.from_model_config(model.config)
    assert model.generation_config._from_model_config
    push(model)
    pulled = AutoModelForCausalLM.from_pretrained(POLICY)
    assert pulled.generation_config.hf_itp == {"strategy": "pessimism", "num_candidates": 6, "beta": 0.4}
    assert model.generation_config._from_model_config, "the caller's own is left as it is"


def test_same_content_makes_no_commit_and_other_content_one(hub_here):
    first = push()
    assert push().oid == first.oid and commits_made(hub_here) == 1
    assert push(beta=0.5).oid != first.oid and commits_made(hub_here) == 2


def test_files_of_an_earlier_form_go_and_the_owners_stay(hub_here):
    push()
    held = hub_here.files(POLICY)
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    earlier = {name: b"old" for name in (*names, "calibration.json", "custom_generate/helper.py")}
    owners = {"LICENSE": b"mine", "pictures/curve.png": b"png", "onnx/config.json": b"{}"}
    hub_here.publish(POLICY, earlier | owners)
    push()
    assert hub_here.files(POLICY) == held | owners
    assert commits_made(hub_here) == 3


def test_weights_are_safetensors_and_nothing_else(hub_here):
    push()
    assert not [name for name in hub_here.files(POLICY) if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    assert hub_here.files(POLICY)["model.safetensors"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/commit/", 500),
        ("POST", "/commit/", 503),
        ("POST", "/preupload/", 502),
        ("POST", "/lfs/objects/batch", 500),
        ("POST", "/repos/create", 503),
    ],
)
def test_passing_fault_is_met_by_trying_again(hub_here, method, path, status):
    hub_here.faults.add(method, path, status=status, times=2)
    push()
    assert commits_made(hub_here) == 1 and "model.safetensors" in hub_here.files(POLICY)


def test_commit_whose_answer_was_lost_is_not_made_twice(hub_here):
    hub_here.faults.add("POST", "/commit/", truncated=True)
    push()
    assert commits_made(hub_here) == 1 and "model.safetensors" in hub_here.files(POLICY)


@pytest.mark.parametrize(
    ("path", "status", "remedy"),
    [
        ("/repos/create", 401, "hf auth login"),
        ("/commit/", 401, "hf auth login"),
        ("/commit/", 403, "may write there"),
        ("/commit/", 404, "Correct the id"),
        ("/commit/", 409, "Push again"),
        ("/commit/", 412, "Push again"),
        ("/commit/", 500, "push again"),
    ],
)
def test_lasting_fault_is_an_error_with_its_remedy_and_nothing_pushed(hub_here, path, status, remedy):
    hub_here.faults.add("POST", path, status=status, times=99)
    with pytest.raises(HubError, match=remedy) as raised:
        push()
    assert str(status) in str(raised.value) and "Nothing was pushed to 'tester/policy'" in str(raised.value)
    assert isinstance(raised.value, OSError)
    if POLICY in hub_here.repositories:
        assert list(hub_here.files(POLICY)) == [".gitattributes"]
    hub_here.faults.clear()
    push()
    assert "model.safetensors" in hub_here.files(POLICY)


def test_pull_request_is_not_opened_twice(hub_here):
    push()
    hub_here.faults.add("POST", "/commit/", status=503, times=1)
    with pytest.raises(HubError):
        push(beta=0.5, create_pr=True)
    assert push(beta=0.5, create_pr=True).pr_url.endswith("/discussions/1")
    assert entry_of(hub_here)["beta"] == 0.4 and entry_of(hub_here, "refs/pr/1")["beta"] == 0.5


def test_branch_is_made_and_main_stays(hub_here):
    push()
    push(beta=0.5, revision="careful")
    push(beta=0.6, revision="careful")
    assert entry_of(hub_here)["beta"] == 0.4 and entry_of(hub_here, "careful")["beta"] == 0.6


def test_private_and_gated_are_the_repositorys(hub_here):
    push(private=True, gated="manual")
    repository = hub_here.repositories[POLICY]
    assert repository.private and repository.gated
    push(private=True)


def test_private_weights_are_not_sent_to_a_public_repository(hub_here):
    push(beta=0.5)
    with pytest.raises(ArgumentError, match=r"which is public.*Make it private"):
        push(private=True)
    assert entry_of(hub_here)["beta"] == 0.5


def test_reward_model_is_recorded_with_its_commit(hub_here, reward_model_here):
    pushed = hub_here.repositories[reward_model_here].refs["main"]
    push(reward_model=reward_model_here)
    assert entry_of(hub_here)["reward_model_revision"] == pushed
    # One in memory is recorded at the commit it was loaded from, whatever the repository has become.
    from hf_itp import RewardModel

    loaded = RewardModel.from_pretrained(reward_model_here)
    hub_here.publish(reward_model_here, {"README.md": b"changed"})
    push(reward_model=loaded)
    assert entry_of(hub_here)["reward_model_revision"] == pushed == loaded.revision


def test_reward_model_nobody_finds_is_refused_before_anything_is_sent(hub_here):
    with pytest.raises(ArgumentError, match="'tester/nothing', which cannot be found"):
        push(reward_model="tester/nothing")
    assert POLICY not in hub_here.repositories


def test_what_is_no_policy_is_refused(hub_here):
    with pytest.raises(ArgumentTypeError, match="Pass a policy"):
        push(tiny_classifier("bert"))
    assert not hub_here.repositories


def test_picture_lies_beside_the_card(hub_here, tmp_path):
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"\x89PNG")
    push(facts=CardFacts(POLICY, picture=str(picture)))
    files = hub_here.files(POLICY)
    assert files["curve.png"] == b"\x89PNG"
    assert b"](curve.png)" in files["README.md"] and str(tmp_path).encode() not in files["README.md"]


def test_token_is_neither_pushed_nor_said(hub_here, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    push(token=TOKEN)
    hub_here.faults.add("POST", "/commit/", status=403)
    with pytest.raises(HubError) as raised:
        push(token=TOKEN, beta=0.9)
    said = [caplog.text, *capfd.readouterr(), str(raised.value), str(raised.value.__cause__)]
    assert not [text for text in said if TOKEN in text]
    for path, content in hub_here.files(POLICY).items():
        assert TOKEN.encode() not in content, path
