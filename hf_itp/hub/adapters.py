"""
Adapters for others to load: their weights and configuration, on a base model that is on the Hub.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hf_itp.errors import ArgumentError
from hf_itp.models.origins import active_adapters


def save_policy(policy: Any, folder: str | Path) -> None:
    """
    Save a policy's weights and configuration; only the adapters, if it has some.

    Raises:
        `ArgumentError`: If several adapters are active at once, which one file cannot hold.
    """
    if not getattr(policy, "peft_config", None) or hasattr(policy, "get_base_model"):
        policy.save_pretrained(folder)
        return
    # transformers holds the adapters. Its `save_pretrained` refuses releases of peft that load and run.
    from peft import get_peft_model_state_dict

    active = active_adapters(policy)
    if len(active) != 1:
        raise ArgumentError(
            f"`policy` must have one active adapter, got {active}. Choose one with policy.set_adapter(...)."
        )
    state = get_peft_model_state_dict(policy, adapter_name=active[0])
    weights = {f"base_model.model.{name}": value.contiguous().cpu() for name, value in state.items()}
    save_file(weights, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(policy.peft_config[active[0]])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def publish_adapter(folder: str | Path, base: str | None) -> None:
    """
    Name the base model of an adapter in `adapter_config.json` by its Hub id. Without an adapter, do nothing.

    Raises:
        `ArgumentError`: If there is no such id, so that nobody else could load the adapter.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    if base is None:
        raise base_is_missing(str(config.get("base_model_name_or_path")))
    if config.get("base_model_name_or_path") != base:
        # A commit belongs to the name that is replaced.
        config |= {"base_model_name_or_path": base, "revision": None}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_is_missing(base: str) -> ArgumentError:
    """Return the error over an adapter whose base model others cannot load."""
    return ArgumentError(
        f"`policy` must be an adapter whose base model is on the Hub, got {base!r}. Push the base model first and "
        "name its id (`--base-model`, or facts=CardFacts(..., base_model=...)), or push policy.merge_and_unload()."
    )
