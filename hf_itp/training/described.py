"""
Tell in words what a trainer's arguments mean: one text for the command's header, its dry run, and the card.
"""

from __future__ import annotations

from typing import Any

from hf_itp.training.arguments import QuantileRegressionArguments
from hf_itp.training.objective import CTRLObjective


def described_objective(args: Any, objective: CTRLObjective) -> dict[str, str]:
    """Return the strategy to decode with, and the transform and KL strength that follow from it."""
    fields = args.strategy_fields if isinstance(args.strategy_fields, dict) else {}
    own = "".join(f", {name} = {value}" for name, value in fields.items())
    decoded = "plain sampling" if args.strategy == "none" else f"{args.strategy}, N = {args.num_candidates}{own}"
    return {
        "decoded with": decoded,
        "transform": str(objective.transform),
        "beta": f"{objective.beta:.6g}",
    }


def described_training(args: Any, *, responses_given: bool = False) -> dict[str, str]:
    """
    Return batch, length, learning rate, responses and seed of a training.

    Args:
        responses_given (`bool`, *optional*, defaults to `False`): Whether a regression trains on responses that were
            drawn before.
    """
    regression = isinstance(args, QuantileRegressionArguments)
    whole = effective_batch(args)
    batch = (
        f"{whole} responses per step: {args.train_batch_size} x {args.gradient_accumulation_steps} accumulated x "
        f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    )
    told = {
        "batch": batch if regression else f"{batch}, {args.num_generations} per prompt",
        "length": f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        "learning rate": f"{args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}",
    }
    if not (regression and responses_given):
        drawn = f"at most {args.max_completion_length} tokens"
        if not regression:
            drawn += f", temperature {args.temperature:g}, top_p {args.top_p:g}, top_k {args.top_k}"
        further = args.generation_kwargs if isinstance(args.generation_kwargs, dict) else {}
        told["responses"] = drawn + "".join(f", {name} {value}" for name, value in further.items())
    return told | {"seed": str(args.seed)}


def effective_batch(args: Any) -> int:
    """Return the responses of all processes that one optimizer step sees."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
