"""
Train with both solvers in the finite world, and measure how far from the optimum they arrive.

A training run is chaotic: the last bit of one sum, which differs between processors and numbers of threads, makes
another run. So a run counts as a random draw, whatever its seed, and claims must hold for nearly all draws: the bounds
lie at least five standard deviations above the mean over seeds, which `python -m tests.every_seed` measures on the
machine at hand. A normal tail beyond five is below 3e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_itp.functional import FiniteTradeoff, finite_tradeoff
from hf_itp.training import (
    CTRLArguments,
    CTRLObjective,
    CTRLTrainer,
    QuantileRegressionArguments,
    QuantileRegressionTrainer,
)
from tests.training.finite import MAX_NEW_TOKENS, TrainingWorld

OBJECTIVES = {
    "identity": {"transform": "identity"},
    "exp(5u)": {"transform": "exponential", "t": 5.0},
    "exp(10u)": {"transform": "exponential", "t": 10.0},
    "-exp(-10u)": {"transform": "exponential", "t": -10.0, "strategy": "worst_of_n"},
    "log": {"transform": "log"},
}
COMMON = {
    "num_reference": 4096,
    "target_kl": 0.5,
    "max_completion_length": MAX_NEW_TOKENS,
    "lr_scheduler_type": "cosine",
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    # Gradients shrink fiftyfold on the way; Adam's default would remember the first ones to the end.
    "adam_beta2": 0.95,
    "gradient_checkpointing": False,
}
BOUNDS = {"total variation": 0.06, "best-of-4 win rate": 0.02, "worst-of-4 win rate": 0.02, "win rate": 0.02}
# Only the few lowest rewards move this objective, so rollouts tell little of the rest: one run in 32 was 0.063 off.
WIDER_BOUNDS = {"-exp(-10u)": {"total variation": 0.12}}

Deviations = dict[str, float]
"""By the names of `BOUNDS`."""


class AveragePolicy(TrainerCallback):
    """Mean of the policy's law over the last third of the steps, which averages out the noise of the last step."""

    def __init__(self, world: TrainingWorld):
        self._world = world
        self._laws: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if 3 * state.global_step > 2 * state.max_steps and state.global_step % 5 == 0:
            was_training = model.training
            self._laws.append(self._world.learned(model).policy)
            model.train(was_training)

    @property
    def law(self) -> torch.Tensor:
        return torch.stack(self._laws).mean(dim=0)


def reinforcement(world: TrainingWorld, folder: Path, name: str, seed: int) -> Deviations:
    args = CTRLArguments(
        str(folder), **OBJECTIVES[name], **COMMON, seed=seed, per_device_train_batch_size=512, num_generations=512,
        max_steps=400 if name == "-exp(-10u)" else 250, learning_rate=1e-3, shuffle_dataset=False,
    )  # fmt: skip
    average = AveragePolicy(world)
    trainer = CTRLTrainer(
        world.policy(), world.reward(), args, train_dataset=world.prompts(8), processing_class=world.tokenizer,
        callbacks=[average],
    )  # fmt: skip
    trainer.train()
    return deviations(world, trainer.objective, average.law)


def regression(world: TrainingWorld, folder: Path, name: str, seed: int) -> Deviations:
    # This policy learns from the references only: with 4,096, what they miss moved one run in ten beyond the bounds.
    references = {"num_reference": 65536}
    args = QuantileRegressionArguments(
        str(folder), **OBJECTIVES[name], **COMMON | references, seed=seed, per_device_train_batch_size=256,
        per_device_eval_batch_size=512, max_steps=400, learning_rate=2e-3, partition="empirical",
    )  # fmt: skip
    average = AveragePolicy(world)
    trainer = QuantileRegressionTrainer(
        world.policy(), world.reward(), args, train_dataset=world.prompts(), processing_class=world.tokenizer,
        callbacks=[average],
    )  # fmt: skip
    trainer.train()
    return deviations(world, trainer.objective, average.law)


EXPERIMENTS: dict[str, Callable[[TrainingWorld, Path, str, int], Deviations]] = {
    "reinforcement": reinforcement,
    "regression": regression,
}


def bounds(name: str) -> Deviations:
    """Return what the deviations of runs with an objective must stay below."""
    return BOUNDS | WIDER_BOUNDS.get(name, {})


def deviations(world: TrainingWorld, objective: CTRLObjective, law: torch.Tensor) -> Deviations:
    """
    Return how far a policy is from the exact optimum, in this world with its ties.

    Measured in total variation, and in win rates against the curve of optima at the policy's KL.
    """
    optimum = finite_tradeoff(world.reference, world.rewards, objective.transform, objective.beta)
    learned = FiniteTradeoff(world.reference, world.rewards, law)
    curve = on_the_curve(world, objective, learned.kl)
    found = (
        float((law - optimum.policy).abs().sum() / 2),
        abs(learned.best_of_n_win_rate(4) - curve.best_of_n_win_rate(4)),
        abs(learned.worst_of_n_win_rate(4) - curve.worst_of_n_win_rate(4)),
        abs(learned.win_rate - curve.win_rate),
    )
    return dict(zip(BOUNDS, found, strict=True))


def on_the_curve(world: TrainingWorld, objective: CTRLObjective, kl: float) -> FiniteTradeoff:
    """Return the optimum of the same transform whose KL in this world is `kl`."""
    low, high = objective.beta / 30, objective.beta * 30
    for _ in range(60):
        middle = math.sqrt(low * high)
        if finite_tradeoff(world.reference, world.rewards, objective.transform, middle).kl > kl:
            low = middle
        else:
            high = middle
    return finite_tradeoff(world.reference, world.rewards, objective.transform, middle)
