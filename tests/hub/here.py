"""Make this process, which has already imported huggingface_hub, take the loopback Hub for the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers
from huggingface_hub import close_session, constants, hf_api
from transformers import dynamic_module_utils

from hf_itp.generation.recommended_reward import _current_commit
from hf_itp.policies.tokenizers import clear_loaded_tokenizers
from hf_itp.rewards.resolve import clear_loaded_reward_models
from tests.hub.server import TOKEN, LoopbackHub


@contextmanager
def taken_for_the_hub(hub: LoopbackHub, cache: Path) -> Iterator[None]:
    """Change the settings that huggingface_hub read at import, as the environment of a new process would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache / "modules"))
        # `init_hf_modules` adds to it.
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(hf_api.api, "endpoint", hub.address)
        # transformers keeps a client of its own once it has made one.
        patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("HF_TOKEN", TOKEN)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    """Forget what this process keeps of repositories by name, since names are the same on every test's Hub."""
    close_session()
    clear_loaded_reward_models()
    _current_commit.cache_clear()
    clear_loaded_tokenizers()
