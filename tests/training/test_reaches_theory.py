"""
Both solvers arrive where the theory says: in a world of 85 responses, at the exact optimum.

Distance to the optimum in total variation at most 0.03, and at the KL the policy arrived at, win rates within 0.01 of
the curve of optima, corrected for the world's ties. 4,096 references, so that their noise is below that.
"""

from __future__ import annotations

import math

import pytest
import torch

from hf_itp.functional import finite_tradeoff
from hf_itp.training import (
    CTRLArguments,
    CTRLTrainer,
    QuantileRegressionArguments,
    QuantileRegressionTrainer,
)
from tests.training.finite import MAX_NEW_TOKENS, TrainingWorld, training_world

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
    "disable_tqdm": True,
    "use_cpu": True,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.uses_global_rng,  # transformers' Trainer seeds it
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TrainingWorld:
    return training_world(tmp_path_factory.mktemp("world"))


def on_the_curve(world, objective, kl):
    """The optimum of the same transform whose KL in this world is `kl`."""
    low, high = objective.beta / 30, objective.beta * 30
    for _ in range(60):
        middle = math.sqrt(low * high)
        if finite_tradeoff(world.reference, world.rewards, objective.transform, middle).kl > kl:
            low = middle
        else:
            high = middle
    return finite_tradeoff(world.reference, world.rewards, objective.transform, middle)


def check(world, trainer):
    objective = trainer.objective
    optimum = finite_tradeoff(world.reference, world.rewards, objective.transform, objective.beta)
    learned = world.learned(trainer.model)
    total_variation = float((learned.policy - optimum.policy).abs().sum() / 2)
    assert total_variation < 0.03
    curve = on_the_curve(world, objective, learned.kl)
    assert learned.best_of_n_win_rate(4) == pytest.approx(curve.best_of_n_win_rate(4), abs=0.01)
    assert learned.worst_of_n_win_rate(4) == pytest.approx(curve.worst_of_n_win_rate(4), abs=0.01)
    assert learned.win_rate == pytest.approx(curve.win_rate, abs=0.01)
    # Far from where it began, so that none of this holds by itself.
    assert float((world.reference - optimum.policy).abs().sum() / 2) > 0.2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_reinforcement_learning_reaches_the_optimum(world, tmp_path, name):
    careful = name == "-exp(-10u)"
    args = CTRLArguments(
        str(tmp_path), **OBJECTIVES[name], **COMMON, per_device_train_batch_size=512, num_generations=512,
        max_steps=400 if careful else 250, learning_rate=1e-3 if careful else 3e-3, shuffle_dataset=False,
    )  # fmt: skip
    trainer = CTRLTrainer(
        world.policy(), world.reward(), args, train_dataset=world.prompts(8), processing_class=world.tokenizer
    )
    trainer.train()
    check(world, trainer)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_regression_reaches_the_optimum(world, tmp_path, name):
    args = QuantileRegressionArguments(
        str(tmp_path), **OBJECTIVES[name], **COMMON, per_device_train_batch_size=256, per_device_eval_batch_size=512,
        max_steps=400, learning_rate=2e-3, partition="empirical",
    )  # fmt: skip
    trainer = QuantileRegressionTrainer(
        world.policy(), world.reward(), args, train_dataset=world.prompts(), processing_class=world.tokenizer
    )
    trainer.train()
    check(world, trainer)


def test_untrained_policy_would_fail_the_check(world):
    class Untrained:
        model = world.policy()
        objective = None

    from hf_itp.training import CTRLObjective
    from hf_itp.training.objective import ObjectiveArguments

    Untrained.objective = CTRLObjective.from_arguments(ObjectiveArguments(transform="identity"))
    with pytest.raises(AssertionError):
        check(world, Untrained)
    assert torch.allclose(world.learned(Untrained.model).policy, world.reference)
