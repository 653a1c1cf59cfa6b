"""Test that what one machine pushes gives another the same tokens, in every way of use, over real HTTP."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from tests.hub.server import TOKEN

POLICY = "tester/policy"
RECOMMENDED = {"strategy": "pessimism", "beta": 0.4, "num_candidates": 6}
COMPLETE = {
    ".gitattributes", "README.md", "calibration.json", "calibration.safetensors", "config.json",
    "custom_generate/generate.py", "custom_generate/requirements.txt", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.oldest]


def push(machine, source, repo=POLICY, **options):
    policy, calibration = source
    return machine("pusher").run("push", policy=policy, repo=repo, calibration=calibration, **(RECOMMENDED | options))


def test_every_way_of_use_gives_the_tokens_of_before_the_push(hub, machine, policy_and_calibration, with_reward_model):
    before = machine("pusher").run(
        "decode", policy=policy_and_calibration[0], how="hf_itp", reward_model=with_reward_model, **RECOMMENDED
    )["ids"]
    push(machine, policy_and_calibration, reward_model=with_reward_model)
    assert set(hub.files(POLICY)) == COMPLETE

    assert machine("one").run("decode", policy=POLICY, how="hf_itp")["ids"] == before
    assert machine("two").run("decode", policy=POLICY, how="remote code")["ids"] == before
    command = machine("three").command(
        "generate", "--model", POLICY, "--strategy", "auto", "--plain", "--json", "--seed", "5",
        "--max-new-tokens", "6", "how do you bake bread",
    )  # fmt: skip
    assert command.returncode == 0, command.stderr
    assert len(before) > 5, "a prompt alone would be equal too"
    from tests.tiny import tiny_tokenizer

    # The text that the response adds to its prompt, with the space before it.
    prompt, whole = (tiny_tokenizer().decode(ids, skip_special_tokens=True) for ids in (before[:5], before))
    assert json.loads(command.stdout)["responses"] == [whole.removeprefix(prompt)]


def test_without_hf_itp_it_is_an_ordinary_checkpoint_that_refuses_strategy(machine, policy_and_calibration):
    push(machine, policy_and_calibration)
    found = machine("one").run("plain", policy=POLICY)
    assert 5 < found["length"] <= 8
    assert "strategy" in found["error"]


@pytest.mark.parametrize(
    "options",
    [
        {"final": True, "save_strategy": "no"},
        {"push_to_hub": True, "hub_strategy": "every_save"},
        {"push_to_hub": True, "hub_strategy": "checkpoint"},
    ],
    ids=["final", "every_save", "checkpoint"],
)
def test_trainer_leaves_the_same_complete_set(hub, machine, policy_and_calibration, tmp_path, options):
    repo = "tester/trained"
    machine("pusher").run(
        "train", policy=policy_and_calibration[0], output=str(tmp_path / "trained"), repo=repo, hub_token=TOKEN,
        **options,
    )  # fmt: skip
    commits = hub.repositories[repo].commits
    pushed = [commit for commit in commits if "model.safetensors" in commit.files]
    assert pushed
    for commit in pushed:
        assert set(commit.files) >= COMPLETE, (commit.title, COMPLETE - set(commit.files))
        entry = json.loads(commit.files["generation_config.json"])["hf_itp"]
        assert entry["strategy"] == "best_of_n" and entry["num_candidates"] == 4
        card = ModelCard(commit.files["README.md"].decode())
        assert "hf-itp" in card.data.tags and "{{" not in card.content
        assert not [name for name, content in commit.files.items() if TOKEN.encode() in content]
