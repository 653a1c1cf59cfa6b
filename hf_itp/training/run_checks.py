"""Refuse arguments that a run would not use, by name and before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hf_itp.errors import ArgumentError
from hf_itp.training.arguments import QuantileRegressionArguments
from hf_itp.training.run_arguments import RunArguments

_EVALUATION = (
    "batch_eval_metrics", "bf16_full_eval", "do_eval", "eval_accumulation_steps", "eval_delay",
    "eval_do_concat_batches", "eval_on_start", "eval_steps", "eval_strategy", "eval_use_gather_object",
    "fp16_full_eval", "greater_is_better", "include_for_metrics", "label_names", "load_best_model_at_end",
    "metric_for_best_model", "num_generations_eval", "prediction_loss_only",
)  # fmt: skip


def check_all_used(run: RunArguments, args: Any, given: dict[str, Any]) -> None:
    """
    Refuse given arguments without effect.

    Args:
        given (`dict`): The arguments that were set, by name.

    Raises:
        `ArgumentError`: If the solver or another argument leaves one of them without effect.
    """
    for name, reason in _unused(run, args):
        if name in given:
            raise ArgumentError(f"`{name}` must have an effect, got {given[name]!r}, which has none: {reason}.")
    # Arguments of the libraries may be given as their defaults.
    for name, reason in _unused_of_libraries(args):
        if name in given and given[name] != _without(args, name):
            raise ArgumentError(f"`{name}` must have an effect, got {given[name]!r}, which has none: {reason}.")


def _unused(run: RunArguments, args: Any) -> Iterator[tuple[str, str]]:
    if run.dataset_name is None:
        for name in ("dataset_config", "dataset_train_split"):
            yield name, "it needs `dataset_name`, which is not given. Leave it out"
    if run.dataset_name is None and run.train_file is None:
        for name in ("prompt_column", "plain"):
            yield name, "the prompts are those of `calibration`. Leave it out"
    if run.lora_r == 0:
        for name in ("lora_alpha", "lora_target_modules"):
            yield name, "`lora_r` is 0, so the whole model is trained. Pass e.g. lora_r=16, or leave it out"
    if isinstance(args, QuantileRegressionArguments) and run.calibration is not None:
        yield "max_completion_length", "the run trains on the responses of `calibration`. Leave it out"
    if args.strategy == "none":
        yield "strategy_fields", "`strategy` is 'none'. Name a strategy, or leave it out"
        if not args.transform.endswith("_of_n_optimal"):
            yield "num_candidates", "`strategy` is 'none'. Name a strategy, or leave it out"
    if getattr(args, "use_vllm", False) or getattr(args, "use_transformers_continuous_batching", False):
        yield "shared_prefix_rollouts", "another engine draws the rollouts. Leave one of them out"
    if not args.do_train:
        yield "do_train", "a run always trains. Leave it out, or add --dry-run to only check"


def _unused_of_libraries(args: Any) -> Iterator[tuple[str, str]]:
    for name in _EVALUATION:
        yield name, "a run has no data to evaluate on. Leave it out"
    yield "do_predict", "a run only trains. Leave it out"
    yield "label_smoothing_factor", "the loss has no labels. Leave it out"
    if isinstance(args, QuantileRegressionArguments):
        yield "remove_unused_columns", "the trainer makes the columns itself. Leave it out"
        return
    yield "per_device_eval_batch_size", "a run has no data to evaluate on. Leave it out"
    yield "reward_weights", "the weight of the one reward follows from `target_kl` or `beta`. Use these"
    for name in ("model_init_kwargs", "trust_remote_code"):
        yield name, "a run loads the policy itself, without code of its repository. Use CTRLTrainer in Python"


def _without(args: Any, name: str) -> Any:
    """Return the default of an argument."""
    field = next((field for field in dataclasses.fields(args) if field.name == name), None)
    if name == "remove_unused_columns" and isinstance(args, QuantileRegressionArguments):
        return False
    if field is None:
        return None
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
