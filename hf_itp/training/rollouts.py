"""
Describe how a trainer draws, once for references and rollouts, and check each way to roll out against it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from hf_itp.errors import ArgumentError
from hf_itp.policies.chat_template import arguments_in_rows
from hf_itp.policies.checks import FIXED_CACHES
from hf_itp.sampling.description import DrawDescription

# Settings that vLLM and transformers' continuous batching take from a trainer. Others never reach vLLM; continuous
# batching drops them with a line in the log.
_VLLM = {"eos_token_id", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"}
_CONTINUOUS_BATCHING = {"eos_token_id", "max_new_tokens", "temperature", "top_k", "top_p"}


def rollout_description(trainer: Any, policy: Any, rows: Sequence[Mapping[str, Any]]) -> DrawDescription:
    """
    Return how an `RLOOTrainer` draws from a policy: by its own settings, then the checkpoint's, and its template
    arguments.

    Raises:
        `ArgumentError`: If the trainer's way to roll out would ignore a setting; names it.
    """
    if trainer.use_vllm:
        config = _told_to_vllm(trainer)
    else:
        config = copy.deepcopy(trainer.generation_config)
    cache, config.cache_implementation = config.cache_implementation, None
    if cache in FIXED_CACHES and draws_itself(trainer):
        raise ArgumentError(
            f"`cache_implementation` must be a growing cache where responses share their prompt, got {cache!r}. "
            "Leave it out, or pass shared_prefix_rollouts=False."
        )
    # A checkpoint's cache does not change what is drawn; references are drawn with a growing one.
    with _without_cache_implementation(policy):
        description = DrawDescription.of(
            policy,
            trainer.processing_class,
            {"generation_config": config},
            chat_template_kwargs=trainer.chat_template_kwargs,
            of_prompts=arguments_in_rows(rows),
            reward_view=trainer.args.reward_view,
        )
    description.check_prompts([row["prompt"] for row in rows])
    settings = description.settings
    if trainer.use_vllm:
        _check_known(settings, _VLLM, "use_vllm")
    elif trainer.use_transformers_continuous_batching:
        _check_known(settings, _CONTINUOUS_BATCHING, "use_transformers_continuous_batching")
    elif not draws_itself(trainer):
        for name, reason in (
            ("stop_strings", "they do not notice where a response ends by one"),
            ("min_length", "it counts their padding of prompts; pass `min_new_tokens` instead"),
        ):
            if name in settings:
                raise ArgumentError(
                    f"`{name}` must be off for TRL's own rollouts, got {settings[name]!r}: {reason}. Remove it, or "
                    "leave `shared_prefix_rollouts` at True."
                )
    return description


def draws_itself(trainer: Any) -> bool:
    """Return whether our sampler, which runs a prompt once, rolls out texts instead of TRL's own generation."""
    return bool(
        trainer.args.shared_prefix_rollouts
        and not trainer.use_vllm
        and not trainer.use_transformers_continuous_batching
        and trainer.has_whole_weights
    )


def end_tokens(policy: Any, tokenizer: Any) -> list[int]:
    """Return every token that ends a response: the policy's and the tokenizer's."""
    own = policy.generation_config.eos_token_id
    declared = [] if own is None else [own] if isinstance(own, int) else list(own)
    last = tokenizer.eos_token_id
    return declared if last is None or last in declared else [last, *declared]


def check_pictures(rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Refuse prompts with pictures, for which references cannot be drawn.

    Raises:
        `ArgumentError`: If a row holds a picture; names the row.
    """
    for number, row in enumerate(rows):
        pictures = [name for name in ("image", "images") if row.get(name)]
        prompt = row["prompt"]
        parts = (
            []
            if isinstance(prompt, str)
            else [part for m in prompt if isinstance(m["content"], list) for part in m["content"]]
        )
        if pictures or any(part.get("type", "text") != "text" for part in parts):
            raise ArgumentError(
                f"`train_dataset` must hold texts or chats of text, since references are drawn for text only, got a "
                f"picture in row {number}. Leave pictures out."
            )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model in eval mode, so that responses are drawn without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _without_cache_implementation(policy: Any) -> Iterator[None]:
    config = policy.generation_config
    own, config.cache_implementation = config.cache_implementation, None
    try:
        yield
    finally:
        config.cache_implementation = own


def _told_to_vllm(trainer: Any) -> GenerationConfig:
    args = trainer.args
    further = dict(args.generation_kwargs or {})
    settings = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": max(args.top_k or 0, 0),  # -1 is off too
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
    }
    unknown = [*(name for name in further if name not in settings)]
    if unknown or args.vllm_structured_outputs_regex is not None:
        name = f"generation_kwargs[{unknown[0]!r}]" if unknown else "vllm_structured_outputs_regex"
        value = further[unknown[0]] if unknown else args.vllm_structured_outputs_regex
        raise ArgumentError(
            f"`{name}` must be left out with `use_vllm`, got {value!r}: transformers draws the references and does "
            "not know it. Remove it, or train without `use_vllm`."
        )
    return GenerationConfig(
        do_sample=True,
        max_new_tokens=args.max_completion_length,
        eos_token_id=trainer.eos_token_ids,
        **(settings | further),
    )


def _check_known(settings: Mapping[str, Any], known: set[str], option: str) -> None:
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ArgumentError(
            f"`{unknown[0]}` must be off with `{option}`, which ignores it, got {settings[unknown[0]]!r}: references "
            "would be drawn with it. Switch it off (in the model's generation config, if it is from there), or leave "
            f"`{option}` out."
        )
