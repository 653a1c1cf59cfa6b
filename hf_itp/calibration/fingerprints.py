"""
Identities and fingerprints of policies and rewards, which say what a calibration belongs to.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp._flat_param import FlatParameter
from torch.distributed.tensor import DTensor

from hf_itp.models.origins import origin_of
from hf_itp.models.public_names import LOCAL
from hf_itp.rewards.base import RewardFunction

# Values read of each parameter: enough to notice fine-tuning, few enough to cost no time.
_VALUES_PER_PARAMETER = 256
# What peft adds to the names of the weights it wraps, and the names of its own weights.
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer|^module\.|_orig_mod\.")
_ADAPTERS = re.compile(r"lora_|ia3_|prompt_encoder|modules_to_save|original_module")


def model_identity(model: nn.Module) -> dict[str, Any]:
    """Return where a model came from, its dtype, and a fingerprint of its weights without adapters."""
    origin = origin_of(model)
    parameters = list(model.parameters())
    return {
        "name": type(model).__name__ if origin is None else origin.name,
        "revision": None if origin is None else origin.commit,
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else None,
        "weights": weights_fingerprint(model),
    }


def reward_identity(reward: RewardFunction) -> dict[str, Any]:
    """Return the identity of a reward model, or the name of any other reward."""
    model = getattr(reward, "model", None)
    if isinstance(model, nn.Module):
        known = model_identity(model)
        return {**known, "name": reward.name, "revision": getattr(reward, "revision", None) or known["revision"]}
    return {"name": reward.name, "revision": None, "dtype": None, "weights": None}


def weights_fingerprint(model: nn.Module) -> str | None:
    """
    Return a hash of some values of every weight, the same with and without adapters; `None` if DeepSpeed or FSDP1 has
    split the weights, so that no process sees them all.
    """
    if any(
        hasattr(parameter, "ds_tensor") or isinstance(parameter, FlatParameter) for parameter in model.parameters()
    ):
        return None
    digest = blake2b(digest_size=16)
    for name, parameter in sorted((_WRAPPERS.sub("", name), value) for name, value in model.named_parameters()):
        if _ADAPTERS.search(name):
            continue
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + _some_values(parameter))
    return digest.hexdigest()


def adapters_fingerprint(model: nn.Module) -> str | None:
    """
    Return a hash of the active adapters; `None` if there are none or they change nothing, as new ones do.
    """
    digest, any_effect = blake2b(digest_size=16), False
    for name, module in sorted(model.named_modules()):
        active = getattr(module, "active_adapters", None) if hasattr(module, "adapter_layer_names") else None
        if not active or getattr(module, "disable_adapters", False):
            continue
        for place, adapter in enumerate(active):
            own = [(part, value) for part, value in module.named_parameters() if adapter in part.split(".")]
            ends = [value for part, value in own if part.startswith(("lora_B", "lora_embedding_B"))]
            if not own or (ends and not any(bool(value.any()) for value in ends)):
                continue
            any_effect = True
            for part, value in own:
                anonymous = ".".join("*" if piece == adapter else piece for piece in part.split("."))
                digest.update(f"{_WRAPPERS.sub('', name)} {place} {anonymous}".encode() + _some_values(value))
    return digest.hexdigest() if any_effect else None


def policy_identity(model: nn.Module) -> dict[str, Any]:
    """Return the [`model_identity`] of a policy with its active adapters."""
    return {**model_identity(model), "adapters": adapters_fingerprint(model)}


def _some_values(parameter: torch.Tensor) -> bytes:
    # With FSDP2 each process holds a part, and all gather the whole together.
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    values = whole.detach().reshape(-1)
    return values[:: max(1, len(values) // _VALUES_PER_PARAMETER)].to("cpu", torch.float32).numpy().tobytes()


def are_different(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """
    Return whether two identities are of different models: by weights if both are known in one dtype, else by name. So
    a folder and the repository it was downloaded from are the same model.
    """
    if one["weights"] and other["weights"] and one["dtype"] == other["dtype"]:
        return one["weights"] != other["weights"]
    # A published calibration does not name folders, so nothing is known of them.
    return LOCAL not in (one["name"], other["name"]) and one["name"] != other["name"]
