"""
How a trainer draws: one description for its references and its rollouts, and what each way to roll out cannot honour.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from hf_itp.errors import ArgumentError
from hf_itp.policies.checks import FIXED_CACHES
from hf_itp.sampling.description import DrawDescription

# What vLLM and transformers' continuous batching take over from a trainer. Of the rest continuous batching drops what
# it does not know, with a line in the log, and vLLM is never told.
_VLLM = {"eos_token_id", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"}
_CONTINUOUS_BATCHING = {"eos_token_id", "max_new_tokens", "temperature", "top_k", "top_p"}


def rollout_description(trainer: Any, policy: Any) -> DrawDescription:
    """
    How an `RLOOTrainer` draws from a policy: its own settings before the checkpoint's, its template arguments.

    Raises:
        `ArgumentError`: If a setting is one that the trainer's way to roll out would not honour; names it.
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
    # A checkpoint's cache says nothing of what is drawn; references are drawn with one that grows.
    with _without_cache_implementation(policy):
        description = DrawDescription.of(
            policy,
            trainer.processing_class,
            {"generation_config": config},
            chat_template_kwargs=trainer.chat_template_kwargs,
        )
    settings = description.settings
    if trainer.use_vllm:
        _check_known(settings, _VLLM, "use_vllm")
    elif trainer.use_transformers_continuous_batching:
        _check_known(settings, _CONTINUOUS_BATCHING, "use_transformers_continuous_batching")
    elif not draws_itself(trainer):
        for name, reason in (
            ("stop_strings", "TRL's own rollouts do not know where a response ended by one"),
            ("min_length", "TRL's own rollouts pad prompts, whose padding it counts; pass `min_new_tokens` instead"),
        ):
            if name in settings:
                raise ArgumentError(
                    f"`{name}` must be off where TRL draws the rollouts, got {settings[name]!r}: {reason}. Remove it, "
                    "or leave `shared_prefix_rollouts` at True."
                )
    return description


def draws_itself(trainer: Any) -> bool:
    """Whether texts are rolled out by the sampler that runs a prompt once, in place of TRL's own generation."""
    return bool(
        trainer.args.shared_prefix_rollouts
        and not trainer.use_vllm
        and not trainer.use_transformers_continuous_batching
        and trainer.has_whole_weights
    )


def end_tokens(policy: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a response: those the policy declares, and the tokenizer's."""
    own = policy.generation_config.eos_token_id
    declared = [] if own is None else [own] if isinstance(own, int) else list(own)
    last = tokenizer.eos_token_id
    return declared if last is None or last in declared else [last, *declared]


def check_pictures(rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Raises:
        `ArgumentError`: If references would have to be drawn for a picture, which they cannot.
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
                f"`train_dataset` must hold texts or chats of text, since references are drawn for text alone, got a "
                f"picture in row {number}. Leave pictures out."
            )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Responses are drawn from the policy itself, without dropout."""
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
            f"`{name}` must be left out with `use_vllm`, got {value!r}: references are drawn by transformers, which "
            "does not know it. Remove it, or train without `use_vllm`."
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
            f"`{unknown[0]}` must be off with `{option}`, which draws without it, got {settings[unknown[0]]!r}: "
            f"references would be drawn with it. Switch it off (in the model's generation config, if it is from "
            f"there), or leave `{option}` out."
        )
