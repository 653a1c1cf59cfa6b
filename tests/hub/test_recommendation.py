"""Test that a stranger's entry only fills gaps in a call, as data."""

from __future__ import annotations

import pytest

from hf_itp.errors import ArgumentError, ItpError
from hf_itp.generation.recommendation import is_repo_id, recommended_arguments
from hf_itp.strategies.pessimism import Pessimism
from tests.tiny import tiny_model


def recommended(entry, **ours):
    model = tiny_model("llama")
    model.config._name_or_path = model.name_or_path = "org/downloaded"
    model.generation_config.hf_itp = entry
    return recommended_arguments(model, {"strategy": "auto", **ours}, {})


def test_what_the_caller_asked_for_stays():
    entry = {"strategy": "pessimism", "beta": 0.1, "num_candidates": 8, "reward_model": "org/reward"}
    ours, fields = recommended(entry, num_candidates=4, reward_model="mine/reward")
    assert ours == {"strategy": Pessimism(beta=0.1), "num_candidates": 4, "reward_model": "mine/reward"}
    assert fields == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"strategy": "best_of_n", "num_candidates": 10**9}, "from 1 to 1024"),
        ({"strategy": "best_of_n", "num_candidates": 0}, "from 1 to 1024"),
        ({"strategy": "best_of_n", "num_candidates": True}, "from 1 to 1024"),
        ({"strategy": "best_of_n", "num_candidates": "16"}, "from 1 to 1024"),
        ({"strategy": "best_of_n", "trust_remote_code": True}, "unknown keys: trust_remote_code"),
        ({"strategy": "best_of_n", "batch_size": 1}, "unknown keys: batch_size"),
        ({"strategy": "best_of_n", "reward_model": "/etc/passwd"}, "by a Hub id"),
        ({"strategy": "best_of_n", "reward_model": "../../secrets"}, "by a Hub id"),
        ({"strategy": "best_of_n", "reward_model": "org/../../x"}, "by a Hub id"),
        ({"strategy": "best_of_n", "reward_model": {"__class__": "os.system"}}, "by a Hub id"),
        ({"strategy": "best_of_n", "reward_model": "org/r", "reward_model_revision": "x; rm"}, "revision"),
        ({"strategy": "best_of_n", "reward_model_revision": "main"}, "revision"),
        ({"strategy": "os.system"}, "Unknown strategy"),
        ({"strategy": "pessimism", "beta": "__import__('os')"}, "`beta` must be a number"),
        (["best_of_n"], "dict with a 'strategy'"),
    ],
)
def test_harmful_entries_are_refused(entry, message):
    with pytest.raises(ItpError, match=message):
        recommended(entry)


@pytest.mark.parametrize("name", ["org/name", "name", "org/na.me-1_2"])
def test_repo_ids_are_told_from_paths(name):
    assert is_repo_id(name)


@pytest.mark.parametrize("name", ["/abs", "./here", "../up", "a/b/c", "org/..", "", "org/na me", "~/x"])
def test_paths_are_told_from_repo_ids(name):
    assert not is_repo_id(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "nonsense"}, "Unknown strategy"),
        ({"strategy": "pessimism", "betta": 0.1}, "betta"),
        ({"beta": 0.1}, "`beta` must come with a strategy"),
        ({"strategy": "best_of_n", "num_candidates": 0}, "at least 1"),
        ({"strategy": "best_of_n", "reward_model": lambda prompts, completions: []}, "others can load"),
        ({"strategy": "best_of_n", "reward_model": "/home/me/reward"}, "others can load"),
    ],
)
def test_push_refuses_what_nobody_could_follow_before_anything_is_sent(options, message):
    from hf_itp import push_to_hub

    with pytest.raises(ArgumentError, match=message):
        push_to_hub(tiny_model("llama"), "tester/policy", **options)
