"""
Make a view of a model: new modules with the same parameters, which may compute differently.

`set_attn_implementation` would change the model for every other call that runs on it. A view leaves the model as it
is, so calls on one model can run side by side. Making a view copies no tensor.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig


def model_view(
    model: torch.nn.Module,
    attention: str | None = None,
    replacements: dict[torch.nn.Module, torch.nn.Module] | None = None,
) -> Any:
    """
    Return a copy of `model`, down to its leaves, that shares every parameter, buffer and hook.

    Args:
        model (`torch.nn.Module`): The model to view.
        attention (`str`, *optional*): Attention implementation for its configurations. By default they keep their own.
        replacements (`dict`, *optional*): By module, another to put in its place.
    """
    return _view(model, attention, {id(old): new for old, new in (replacements or {}).items()})


def can_be_viewed(module: torch.nn.Module) -> bool:
    """
    Return whether a view would behave like the module.

    A `forward` set on an instance (by accelerate's hooks, by torch.compile) is bound to the original module and would
    run that instead of the view; FSDP2 finds the shards of a module by the module itself.
    """
    fixed = (torch.jit.ScriptModule, FSDPModule)
    return not any("forward" in vars(child) or isinstance(child, fixed) for child in module.modules())


def _view(original: Any, attention: str | None, seen: dict[int, Any]) -> Any:
    if id(original) in seen:
        return seen[id(original)]
    view = seen[id(original)] = copy.copy(original)
    if isinstance(original, PreTrainedConfig) and attention is not None:
        # Not the public setter, which also writes to the configurations of parts that the original still holds.
        view._attn_implementation_internal = attention
    # `copy.copy` of a module shares the dict of its children.
    for name, value in vars(original).items():
        if name == "_modules":
            children = {key: child and _view(child, attention, seen) for key, child in value.items()}
            view.__dict__["_modules"] = children
        elif isinstance(value, PreTrainedConfig):
            view.__dict__[name] = _view(value, attention, seen)
    return view
