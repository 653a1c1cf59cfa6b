"""
Turn what a user passes as `reward_model` into a [`RewardFunction`].

Models given by name stay loaded between calls: reading weights often takes longer than a call of `generate`.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.models.origins import folder_state, token_of
from hf_itp.policies.tokenizers import tokenizer_origin
from hf_itp.rewards.base import RewardFunction
from hf_itp.rewards.callables import CallableReward
from hf_itp.rewards.checkpoints.loading import load_tokenizer, local_name
from hf_itp.rewards.ensemble import RewardEnsemble
from hf_itp.rewards.options import RewardModelOptions
from hf_itp.rewards.reward_model import RewardModel

MAX_LOADED_MODELS = 4
"""How many reward models given by name stay in memory; the least recently used leaves first."""

_loaded: OrderedDict[Hashable, RewardModel] = OrderedDict()
_loading = threading.Lock()

RewardLike = str | Path | PreTrainedModel | RewardFunction | Callable[..., Any] | list | tuple
"""What [`as_reward_function`] accepts."""


def as_reward_function(
    reward_model: RewardLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | int | torch.device | None = None,
    **options: Any,
) -> RewardFunction:
    """
    Return a [`RewardFunction`] for what `generate(reward_model=...)` takes.

    The last 4 models given by name stay loaded, keyed by name, options and, for a folder, the state of its files;
    [`clear_loaded_reward_models`] frees them.

    Args:
        reward_model (`str`, `PreTrainedModel`, `RewardFunction`, `Callable` or a list of these):
            Hub id, local folder or `"embedded"`; a sequence-classification model; a [`RewardFunction`], returned
            unchanged; a TRL-style callable `f(prompts, completions, **kwargs) -> list[float]`. A list means the mean
            of its members: build a [`RewardEnsemble`] for anything else.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The reward model's tokenizer. Defaults to the one stored with the model.
        device (`str`, `int` or `torch.device`, *optional*):
            Where to put a model given by name. Other models are not moved.
        options:
            Keywords of [`RewardModel`] for a model, of [`RewardModel.from_pretrained`] for a name.

    Raises:
        `ArgumentTypeError`: If `reward_model` is none of these.
        `ArgumentError`: If an option would not be used.
        `LoadError`, `RewardModelError`: If the model cannot be loaded, or is not a reward model.

    Examples:

    ```python
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> as_reward_function([brevity, brevity]).name
    'mean(brevity, brevity)'

    ```
    """
    if isinstance(reward_model, (list, tuple)):
        return RewardEnsemble(
            [as_reward_function(member, tokenizer=tokenizer, device=device, **options) for member in reward_model]
        )
    if isinstance(reward_model, (str, Path)):
        options |= {"tokenizer": tokenizer, "device": None if device is None else str(torch.device(device))}
        return _from_name(str(reward_model), options)
    if isinstance(reward_model, PreTrainedModel):
        RewardModelOptions.from_keywords(options)  # before a tokenizer is looked for
        return RewardModel(reward_model, tokenizer or _tokenizer_of(reward_model), **options)
    if tokenizer is not None or options:
        given = ["tokenizer"] * (tokenizer is not None) + list(options)
        raise ArgumentError(
            f"`{given[0]}` must belong to a reward model, got it beside a {type(reward_model).__name__}, "
            "which would ignore it. Drop it or build the RewardFunction with it."
        )
    if isinstance(reward_model, RewardFunction):
        return reward_model
    if callable(reward_model) and not isinstance(reward_model, (nn.Module, type)):
        return CallableReward(reward_model)
    if isinstance(reward_model, nn.Module):
        remedy = "Pass the transformers model itself; merge a PEFT model first with `merge_and_unload()`."
    else:
        remedy = "Pass one of these."
    kind = f"the class {reward_model.__name__}" if isinstance(reward_model, type) else type(reward_model).__name__
    raise ArgumentTypeError(
        "`reward_model` must be a Hub id, a local folder, a PreTrainedModel, a RewardFunction, a callable "
        f"f(prompts, completions, **kwargs) -> list[float], or a list of these, got {kind}. {remedy}"
    )


def checked_reward(reward_model: RewardLike) -> Any:
    """
    Check a reward model without loading any: return a [`RewardFunction`], or names of models unchanged, to load later
    on the policy's device.

    Raises:
        `ItpError`: As [`as_reward_function`], except for what only loading shows.
    """
    if isinstance(reward_model, (list, tuple)) and reward_model:
        return [checked_reward(member) for member in reward_model]
    if isinstance(reward_model, (str, Path)) and str(reward_model).strip():
        return reward_model
    return as_reward_function(reward_model)


def clear_loaded_reward_models() -> None:
    """Free the reward models that [`as_reward_function`] loaded by name."""
    with _loading:
        _loaded.clear()


def _from_name(name: str, options: dict[str, Any]) -> RewardModel:
    if not name.strip():
        raise ArgumentError("`reward_model` must be a Hub id or a folder, got an empty name. Pass e.g. 'org/name'.")
    # The order of keywords does not matter; an unhashable option (a dict) is compared by its text.
    described = ((key, value if _is_hashable(value) else repr(value)) for key, value in options.items())
    key = (
        name,
        _state(local_name(name), str(options.get("subfolder") or "")),
        tuple(sorted(described, key=lambda item: item[0])),
    )
    # Held while loading, so that two threads that ask for one model load it once.
    with _loading:
        if key not in _loaded:
            _loaded[key] = RewardModel.from_pretrained(name, **options)
        _loaded.move_to_end(key)
        while len(_loaded) > MAX_LOADED_MODELS:
            _loaded.popitem(last=False)
        return _loaded[key]


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _state(name: str, subfolder: str) -> Hashable:
    """Return the state of a model's folder, and of its base model's if it is an adapter on a local folder."""
    folder = Path(name).expanduser() / subfolder
    base = ""
    with suppress(OSError, ValueError, AttributeError):
        base = str(json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path") or "")
    return folder_state(str(folder)), folder_state(base) if base else None


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    rule = f"A reward model built in memory must come with its tokenizer, got only a {type(model).__name__}"
    origin = tokenizer_origin(model, rule, "Pass `RewardModel(model, tokenizer)`.")
    token = token_of(model)
    return load_tokenizer(origin.name, **origin.options(), **({} if token is None else {"token": token}))
