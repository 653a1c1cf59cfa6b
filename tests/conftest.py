"""
Set what holds for every test: no network, one thread, and torch's global random numbers left unchanged.
"""

from __future__ import annotations

import os
import sys

# Before transformers and huggingface_hub are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.global_rng import global_rng_watched
from tests.tiny import PromptBoundReward, saved_policy, tiny_tokenizer
from tests.worlds.laws import FiniteWorld, finite_world

# Each pytest worker has one core.
torch.set_num_threads(1)

# torch starts every process from other numbers. A test that draws from them must hold for all, so that a sweep over
# this seed finds those that do not; without it a run repeats the last one.
GLOBAL_SEED = int(os.environ.get("HF_ITP_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def global_rng_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Start a test at `GLOBAL_SEED`, and fail it if it moves or seeds torch's global random numbers.

    The marker `uses_global_rng` allows a test to do so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(GLOBAL_SEED)
        if request.node.get_closest_marker("uses_global_rng"):
            yield
        else:
            with global_rng_watched():
                yield


@pytest.fixture(autouse=True)
def advice_not_yet_given() -> None:
    """Start a test as a process starts: no strategy has been advised on, and no pool was seen."""
    if (module := sys.modules.get("hf_itp.generation.advice")) is not None:
        module.ADVISER.__init__()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def prompt_bound_reward() -> PromptBoundReward:
    return PromptBoundReward()


@pytest.fixture
def policy_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return `policy_folder(architecture="llama")`, which gives the folder of a saved policy with its tokenizer."""
    return lambda architecture="llama", **overrides: saved_policy(tmp_path, architecture, **overrides)


@pytest.fixture(scope="session")
def small_world() -> FiniteWorld:
    """Return a world of 21 responses, few enough for `push_forward` with four candidates. Shared: do not change."""
    return finite_world(vocabulary=5, max_new_tokens=2)
