"""Test `hf-itp push` against the loopback Hub in this process: what it takes from the policy and from its options."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from hf_itp.cli import main
from hf_itp.hub import write_artefacts
from tests.hub.test_round_trip import COMPLETE
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer

POLICY = "tester/policy"
ENTRY = {"strategy": "pessimism", "num_candidates": 5, "beta": 0.3, "reward_model": "embedded"}


@pytest.fixture
def folder(tmp_path):
    """Save a policy that recommends a decoding, and a tokenizer without a padding token."""
    folder = saved_policy(tmp_path)
    write_artefacts(folder, generation_config=tiny_model("llama").generation_config, entry=ENTRY)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "right"
    tokenizer.save_pretrained(folder)
    return folder


def push(folder, *options):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(folder), POLICY, *options])
    return ended.value.code or 0


def entry_of(hub, revision="main"):
    return json.loads(hub.files(POLICY, revision)["generation_config.json"])["hf_itp"]


def test_recommendation_of_the_folder_goes_along_and_options_win(hub_here, folder, capfd):
    assert push(folder) == 0
    commit = hub_here.repositories[POLICY].commits[-1].oid
    assert capfd.readouterr().out == f"{hub_here.address}/{POLICY}/commit/{commit}\n"
    defaults = {"pool": "shared", "reward_bound": None, "normalize": "none"}
    assert entry_of(hub_here) == ENTRY | defaults
    assert push(folder, "--revision", "bold", "-n", "9", "--beta", "0.1") == 0
    assert entry_of(hub_here, "bold") == ENTRY | defaults | {"num_candidates": 9, "beta": 0.1}
    assert push(folder, "--revision", "other", "-s", "best_of_n", "-n", "2", "-r", "embedded") == 0
    assert entry_of(hub_here, "other") == {"strategy": "best_of_n", "num_candidates": 2, "reward_model": "embedded"}


def test_tokenizer_is_pushed_as_it_was_saved(hub_here, folder):
    assert push(folder) == 0
    pulled = AutoTokenizer.from_pretrained(POLICY)
    assert pulled.pad_token is None and pulled.padding_side == "right"


def test_card_says_what_the_options_say(hub_here, folder, tmp_path):
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"\x89PNG")
    assert push(folder, "--license", "apache-2.0", "--base-model", "org/base", "--dataset", "org/a", "--dataset",
                "org/b", "--language", "en", "--picture", str(picture), "--limit", "Bread only.") == 0  # fmt: skip
    card = ModelCard(hub_here.files(POLICY)["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.base_model == "org/base"
    assert card.data.datasets == ["org/a", "org/b"] and card.data.language == "en"
    assert "Bread only." in card.content and "](curve.png)" in card.content
    assert "curve.png" in hub_here.files(POLICY)


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--gated", "perhaps"), 2), (("--picture", "nowhere.png"), 2), (("-s", "nonsense"), 1), (("--beta", "nan"), 1)],
)
def test_bad_options_send_nothing(hub_here, folder, options, code):
    assert push(folder, *options) == code
    assert not hub_here.repositories


def test_pushed_calibration_is_the_repositorys_where_the_policy_is_on_the_hub(
    hub_here, folder, policy_and_calibration
):
    assert push(folder, "--calibration", policy_and_calibration[1]) == 0
    with pytest.raises(SystemExit) as ended:
        main(["push", POLICY, "tester/copy"])
    assert not ended.value.code
    pushed, copied = hub_here.files(POLICY), hub_here.files("tester/copy")
    assert pushed["calibration.safetensors"] == copied["calibration.safetensors"]
    assert set(pushed) == set(copied) == COMPLETE


@pytest.mark.parametrize(
    ("recommended", "options", "told"),
    [
        ("best_of_n", ("--beta", "0.1"), "Strategy 'best_of_n' has no field `beta`"),
        ("best_of_n", ("--set", "betta=0.1"), "Strategy 'best_of_n' has no field `betta`"),
        ("best_of_n", ("--set", "temperature=0.1"), "Strategy 'best_of_n' has no field `temperature`"),
        ("pessimism", ("--set", "betta=0.1"), "Did you mean 'beta'?"),
        ("pessimism", ("--set", "num_candidates=3"), "no field `num_candidates`"),
        ("pessimism", ("-s", "best_of_n", "--beta", "0.1"), "Strategy 'best_of_n' has no field `beta`"),
        ("pessimism", ("-s", "none"), "Unknown strategy 'none'"),
        (None, ("-n", "8"), "`--num-candidates` must come with a strategy"),
        (None, ("-r", "embedded"), "`--reward-model` must come with a strategy"),
        (None, ("--beta", "0.1"), "`--beta or --set` must come with a strategy"),
        (None, ("--set", "pool=fresh"), "`--beta or --set` must come with a strategy"),
    ],
)
def test_option_that_would_not_be_used_sends_nothing(hub_here, tmp_path, capfd, recommended, options, told):
    folder = saved_policy(tmp_path)
    if recommended:
        entry = {"strategy": recommended, "num_candidates": 5, "reward_model": "embedded"}
        write_artefacts(folder, generation_config=tiny_model("llama").generation_config, entry=entry)
    assert push(folder, *options) == 1
    assert told in capfd.readouterr().err
    assert not hub_here.repositories
