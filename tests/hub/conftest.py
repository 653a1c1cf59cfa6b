"""Set up a loopback Hub with a reward model on it, machines around it, and a policy to push."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hf_itp import RewardCalibrator
from hf_itp.calibration.fingerprints import model_identity
from tests.hub.here import taken_for_the_hub
from tests.hub.running import Machine
from tests.hub.server import LoopbackHub
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer

REWARD_MODEL = "tester/reward-model"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def machine(hub: LoopbackHub, tmp_path: Path) -> Callable[..., Machine]:
    """Return `machine("name")`: the same name gives the same cache."""
    return lambda name="a machine", **environment: Machine(hub, tmp_path / "homes" / name, **environment)


@pytest.fixture(scope="session")
def policy_and_calibration(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("to push")
    rewards = torch.arange(12.0).view(2, 6)
    identity = model_identity(tiny_model("llama"))
    calibrator = RewardCalibrator(["how do you bake bread", "what is salt for"], rewards, policy=identity, seed=3)
    calibrator.save_pretrained(folder / "calibration")
    return str(saved_policy(folder)), str(folder / "calibration")


@pytest.fixture
def with_reward_model(hub: LoopbackHub, machine: Callable[..., Machine], tmp_path: Path) -> str:
    """Put a reward model on the Hub; return its id."""
    folder = saved(tmp_path / "reward", tiny_classifier("llama"), tiny_tokenizer())
    machine("the reward model's author").run("push_reward_model", folder=folder, repo=REWARD_MODEL)
    return REWARD_MODEL


@pytest.fixture
def hub_here(hub: LoopbackHub, tmp_path: Path) -> Iterator[LoopbackHub]:
    """Let this process take the loopback Hub for the real one, which is seconds faster than a process of its own."""
    with taken_for_the_hub(hub, tmp_path / "cache here"):
        yield hub


@pytest.fixture
def reward_model_here(hub_here: LoopbackHub, tmp_path: Path) -> str:
    """Put a reward model on the Hub; return its id."""
    folder = Path(saved(tmp_path / "reward here", tiny_classifier("llama"), tiny_tokenizer()))
    hub_here.publish(REWARD_MODEL, {file.name: file.read_bytes() for file in folder.iterdir()})
    return REWARD_MODEL
