"""
Turn the arguments of `generate(strategy=...)` into those of transformers' own `generate` with a [`StrategyDecoding`].

Knows nothing of how `generate` comes to call it (`patching`).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from hf_itp.checks import nearest_name
from hf_itp.errors import ArgumentError, UnsupportedModelError
from hf_itp.generation.decoding import StrategyDecoding
from hf_itp.generation.inputs import check_inputs
from hf_itp.generation.keywords import KEYWORDS, Keywords
from hf_itp.generation.pipelines import of_rows
from hf_itp.generation.recommendation import recommended_arguments
from hf_itp.generation.recommended_reward import RecommendedReward
from hf_itp.generation.tokenizer_arguments import without_need_of_tokenizer
from hf_itp.policies.checks import (
    check_cache_implementation,
    check_generation_config,
    check_model,
    check_sampling,
)
from hf_itp.rewards import as_reward_function
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.settings import first_set, sources_of, unset_is_off
from hf_itp.strategies import Strategy, get_strategy
from hf_itp.strategies.registry import strategy_class


def arguments_for_original(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments for transformers' own `generate`, with all about the strategy in one `custom_generate`.

    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name, `strategy` among them.

    Raises:
        `ItpError`: A fitting subclass if an argument is wrong, before any token is drawn.
    """
    if type(model).generate is not GenerationMixin.generate:
        raise UnsupportedModelError(
            f"`strategy` must come with the standard `generate`, got {type(model).__name__} with one of its own. Pass "
            "custom_generate=hf_itp.StrategyDecoding(...) if it is a thin wrapper, or select among its outputs "
            "with `hf_itp.get_strategy(...).select(rewards)`."
        )
    check_model(model)

    # Sort the arguments: ours, the strategy's own fields, transformers'.
    ours = {name: arguments.pop(name) for name in KEYWORDS if name in arguments}
    if ours["strategy"] == "auto":
        ours, arguments = recommended_arguments(model, ours, arguments)
    strategy = _strategy(ours["strategy"], arguments)

    # Check the others, and switch sampling on.
    _refuse_conflicts(arguments)
    check_inputs(model, arguments)
    given = arguments.get("inputs", arguments.get("input_ids"))
    ours = of_rows(ours, 1 if given is None else len(given))
    arguments, num_return_sequences = _sampling_arguments(model, arguments)
    tokenizer = arguments.pop("tokenizer", None)
    _check_arguments(model, arguments, strategy, ours.get("num_candidates"))
    reward = ours.get("reward_model")
    if reward is None:
        raise ArgumentError(
            f"`reward_model` must be given with strategy={strategy.name!r}, got None, and nothing else can rank the "
            "candidates. Pass a Hub id, a folder, a model or a function f(prompts, completions, **kwargs)."
        )
    streamer = arguments.pop("streamer", None)
    arguments = without_need_of_tokenizer(model, arguments, tokenizer)

    # Load the reward, and put all about the strategy into one value.
    decoding = StrategyDecoding(
        strategy=strategy,
        reward=(
            reward.load(model.device)
            if isinstance(reward, RecommendedReward)
            else as_reward_function(reward, device=model.device)
        ),
        num_return_sequences=num_return_sequences,
        tokenizer=tokenizer,
        streamer=streamer,
        input_prompts=_encoder_prompts(model, arguments),
        keep_top_k_50=True,
        **{field.name: ours[field.name] for field in dataclasses.fields(Keywords) if ours.get(field.name) is not None},
    )
    return {**arguments, "custom_generate": decoding}


def arguments_beside_decoding(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments for transformers' own `generate` where the caller passes a [`StrategyDecoding`] to it.

    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name.

    Raises:
        `ItpError`: A fitting subclass if an argument is wrong, before any token is drawn.
    """
    check_inputs(model, arguments)
    decoding: StrategyDecoding = arguments["custom_generate"]
    check_sampling(_settings(model, arguments)[0], decoding.num_candidates)
    tokenizer, streamer = arguments.pop("tokenizer", None), arguments.pop("streamer", None)
    decoding = dataclasses.replace(
        decoding,
        tokenizer=tokenizer if decoding.tokenizer is None else decoding.tokenizer,
        streamer=streamer if decoding.streamer is None else decoding.streamer,
    )
    arguments = without_need_of_tokenizer(model, arguments, decoding.tokenizer)
    return {**arguments, "custom_generate": decoding}


def _strategy(strategy: str | Strategy, arguments: dict[str, Any]) -> Strategy:
    """Return the strategy, and take its own fields out of `arguments`."""
    if not isinstance(strategy, str):
        return get_strategy(strategy)
    known = strategy_class(strategy).field_names()
    fields = {name: arguments[name] for name in known if name in arguments}
    shared = [name for name in fields if hasattr(GenerationConfig(), name)]
    if shared:
        raise ArgumentError(
            f"`{shared[0]}` must be given apart for sampling and for strategy {strategy!r}, got one keyword for both. "
            f"Pass strategy=hf_itp.get_strategy({strategy!r}, {shared[0]}=...), and sampling's beside it."
        )
    for name in fields:
        del arguments[name]
    return get_strategy(strategy, **fields)


def _refuse_conflicts(arguments: dict[str, Any]) -> None:
    reasons = {
        "custom_generate": "both replace the decoding loop. Pass one of them",
        "assistant_model": "candidates are drawn without an assistant. Remove it",
        "assistant_tokenizer": "candidates are drawn without an assistant. Remove it",
    }
    for name, reason in reasons.items():
        if arguments.get(name) is not None:
            kind = type(arguments[name]).__name__
            raise ArgumentError(f"`{name}` must be absent with `strategy`, got a {kind}: {reason}.")
    config = arguments.get("generation_config")
    for name in ("strategy", "reward_model", "num_candidates"):
        if hasattr(config, name):
            raise ArgumentError(
                f"`{name}` must be a keyword of `generate`, got it in `generation_config`, where transformers ignores "
                f"it. Pass {name}=... to `generate`."
            )


def _sampling_arguments(model: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the arguments, with sampling on and unset filters off, and the number of responses to return."""
    arguments = dict(arguments)
    config = arguments.get("generation_config")
    num_return_sequences = first_set("num_return_sequences", sources_of(model, arguments, config))
    num_return_sequences = 1 if num_return_sequences is None else num_return_sequences
    settings = {"num_return_sequences": 1, **unset_is_off(model, arguments, config)}
    if config is None:
        arguments.update(settings)
    else:
        # Keep to the caller's kind of argument: transformers warns if both kinds are used.
        arguments.pop("num_return_sequences", None)
        config = copy.deepcopy(config)
        config.update(**settings)
        arguments["generation_config"] = config
    return arguments, num_return_sequences


def _check_arguments(model: Any, arguments: dict[str, Any], strategy: Strategy, num_candidates: int | None) -> None:
    """Check what transformers would refuse only after some work, or in words that do not name strategies."""
    config, model_kwargs = _settings(model, arguments)
    check_generation_config(config, StrategyDecoding.num_candidates if num_candidates is None else num_candidates)
    check_cache_implementation(model, config)
    for name, value in model_kwargs.items():
        try:
            model._validate_model_kwargs({name: value})
        except ValueError:
            own = list(strategy.field_names())
            meant = nearest_name(name, [*own, *KEYWORDS, *vars(config)])
            hint = f" Did you mean `{meant}`?" if meant else ""
            raise ArgumentError(
                f"`{name}` must be a keyword of `generate`, of {type(model).__name__} or of strategy "
                f"{strategy.name!r}, got no such name."
                f"{hint} The strategy takes {', '.join(own) or 'no fields'}; `generate` takes {', '.join(KEYWORDS)} "
                "and what transformers knows. Correct or remove the name."
            ) from None


def _settings(model: Any, arguments: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the settings of a call as transformers resolves them, and the arguments that are none."""
    named = set(inspect.signature(GenerationMixin.generate).parameters)
    rest = {name: value for name, value in arguments.items() if name not in named}
    return model._prepare_generation_config(arguments.get("generation_config"), **rest)


def _encoder_prompts(model: Any, arguments: dict[str, Any]) -> list[list[int]] | None:
    if not model.config.is_encoder_decoder:
        return None
    given = arguments.get("inputs", arguments.get("input_ids"))
    if not isinstance(given, torch.Tensor) or given.dim() != 2 or given.is_floating_point():
        return None
    return unpadded(given, arguments.get("attention_mask"))
