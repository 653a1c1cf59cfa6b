"""Test that arrays, lists, tuples and pandas objects go wherever a tensor goes, and that what is none is named."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hf_itp import functional
from hf_itp.errors import ArgumentTypeError
from hf_itp.functional.transforms import Transform

POOL = torch.tensor([1.0, 0.8, 0.5, 0.1, -0.3], dtype=torch.float64)
LAW = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0], dtype=torch.float64)
WEIGHTS = 5 * LAW
TWO = torch.stack([POOL, POOL.flip(0) * 2])

# Every public function that takes tensors: which it takes, and its other arguments.
CASES: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
    "pessimism": ({"rewards": POOL}, {"beta": 0.1}),
    "weights_beyond_pool": ({"new_rewards": POOL, "rewards": POOL, "weights": WEIGHTS}, {"beta": 0.3}),
    "beta_for_effective_sample_size": ({"rewards": TWO, "size": torch.tensor([2.0, 3.0]).double()}, {}),
    "rejection_bound": ({"rewards": POOL, "weights": WEIGHTS}, {"beta": 0.3, "reward_bound": 2.0}),
    "acceptance_probabilities": ({"weights": TWO.abs(), "bound": torch.tensor([1.5, 0.5]).double()}, {}),
    "rejection_law": ({"weights": TWO.abs(), "bound": torch.tensor([1.5, 0.5]).double()}, {}),
    "first_accept_law": ({"acceptance": LAW}, {}),
    "average_first_accept_law": ({"acceptance": LAW}, {}),
    "no_acceptance_probability": ({"acceptance_rate": LAW}, {"num_proposals": 3}),
    "best_of_n_law": ({"rewards": POOL}, {}),
    "worst_of_n_law": ({"rewards": POOL}, {}),
    "best_of_n_subsample_law": ({"rewards": POOL}, {"n": 2}),
    "worst_of_n_subsample_law": ({"rewards": POOL}, {"n": 2}),
    "top_ranks_subsample_law": ({"rewards": POOL}, {"n": 3, "count": 2}),
    "mean_subsample_law": (  # a subset of all, whose law is that of the pool whatever its order
        {"rewards": TWO},
        {"law": functional.best_of_n_law, "n": 5, "generator": torch.Generator()},
    ),
    "soft_best_of_n_law": ({"rewards": POOL}, {"temperature": 0.5}),
    "top_quantile_law": ({"rewards": POOL}, {"multiplier": 2}),
    "best_of_poisson_law": ({"rewards": POOL}, {"rate": 2.0}),
    "calibrate_rewards": ({"rewards": POOL, "reference_rewards": POOL}, {}),
    "normalize_rewards": ({"rewards": POOL, "reference": POOL * 2}, {"normalize": "zscore"}),
    "in_reward_units": ({"values": torch.tensor([0.5, 0.3]).double(), "rewards": TWO}, {"normalize": "zscore"}),
    "aggregate_rewards": ({"rewards": TWO}, {"how": "mean_minus_std"}),
    "finite_tradeoff": ({"reference": LAW, "rewards": POOL}, {"transform": "log", "beta": 1.0}),
    "win_rate": ({"rewards": TWO, "reference_rewards": TWO.flip(0)}, {}),
    "best_of_n_win_rate": ({"rewards": TWO, "reference_rewards": TWO.flip(0)}, {"n": 2}),
    "worst_of_n_win_rate": ({"rewards": TWO, "reference_rewards": TWO.flip(0)}, {"n": 2}),
    "sequence_log_ratios": ({"logprobs": TWO, "ref_logprobs": TWO.flip(0), "mask": TWO > 0}, {}),
    "kl_k1": ({"log_ratios": TWO}, {}),
    "kl_k3": ({"log_ratios": TWO}, {}),
    "effective_sample_size": ({"probabilities": LAW}, {}),
    "sample_without_replacement": ({"probabilities": LAW, "then_by": POOL}, {"k": 5}),
}
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "array": lambda tensor: tensor.numpy(),
    "array that may not be written, backwards in memory": lambda tensor: _unwritable(tensor),
    "list": lambda tensor: tensor.tolist(),
    "tuple": lambda tensor: _as_tuple(tensor.tolist()),
    "list of arrays": lambda tensor: list(tensor.numpy()),
    "list of tensors": lambda tensor: list(tensor),
    "pandas": lambda tensor: (pd.Series if tensor.dim() == 1 else pd.DataFrame)(tensor.numpy()),
}
ARGUMENTS = [(name, argument) for name in CASES for argument in CASES[name][0]]
NO_NUMBERS = [
    None,
    "0.5",
    (number for number in (0.5, 1.0)),
    [0.5, None, 1.0],
    [[0.5, 1.0], [0.5, "x"]],
    [[0.5, 1.0], [0.5]],
    np.array([0.5, None]),
    np.array([0.5j]),
    np.array(["2026-11-25"], dtype="datetime64[D]"),
    np.ma.masked_array([0.5, 9.0], mask=[False, True]),
]


def _unwritable(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy()[..., ::-1].copy()[..., ::-1]
    array.setflags(write=False)
    return array


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _result(name: str, tensors: dict[str, Any]) -> Any:
    options = CASES[name][1]
    if name == "sample_without_replacement":
        options = {**options, "generator": torch.Generator().manual_seed(3)}
    return getattr(functional, name)(**tensors, **options)


def _parts(result: Any) -> list[Any]:
    if dataclasses.is_dataclass(result):
        return [getattr(result, field.name) for field in dataclasses.fields(result)]
    return list(result) if isinstance(result, tuple) else [result]


def _assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(_parts(found), _parts(expected), strict=True):
        assert type(one) is type(other)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other)
        else:
            assert one == other


def test_every_public_function_that_takes_tensors_is_in_the_table():
    functions = {name: getattr(functional, name) for name in functional.__all__}
    takes = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function)
        and any("Tensor" in str(p.annotation) for p in inspect.signature(function).parameters.values())
    }
    assert takes - {"get_transform"} == set(CASES)  # a transform is a function of its own: below


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_result_is_that_of_a_tensor(name, kind):
    tensors = CASES[name][0]
    given = {argument: KINDS[kind](tensor) for argument, tensor in tensors.items()}
    _assert_same(_result(name, given), _result(name, tensors))


@pytest.mark.parametrize("name", CASES)
def test_integers_are_numbers(name):
    # The first has all mass of a law; others are rounded up, so that no bound is 0.
    sure = torch.tensor([1, 0, 0, 0, 0])
    tensors = {
        argument: sure if tensor is LAW or tensor is WEIGHTS else tensor.double().ceil().long()
        for argument, tensor in CASES[name][0].items()
    }
    _assert_same(_result(name, {a: t.tolist() for a, t in tensors.items()}), _result(name, tensors))
    _assert_same(_result(name, {a: t.numpy() for a, t in tensors.items()}), _result(name, tensors))


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_no_number_is_refused_by_the_name_of_its_argument(name, argument):
    optional = inspect.signature(getattr(functional, name)).parameters[argument].default is None
    for wrong in NO_NUMBERS[1:] if optional else NO_NUMBERS:
        with pytest.raises(
            ArgumentTypeError, match=f"`{argument}` must be real numbers in a tensor, an array or a list"
        ):
            _result(name, {**CASES[name][0], argument: wrong})


@pytest.mark.parametrize(("name", "argument"), [pair for pair in ARGUMENTS if pair[1] != "mask"])
def test_bools_are_refused_by_the_name_of_their_argument(name, argument):
    with pytest.raises(ArgumentTypeError, match=f"`{argument}` must hold real numbers, got dtype torch.bool"):
        _result(name, {**CASES[name][0], argument: [True, False]})


@pytest.mark.parametrize(
    ("transform", "fields"),
    [
        ("identity", {}),
        ("log", {}),
        ("exponential", {"t": 2.0}),
        ("best_of_n_optimal", {"n": 2, "beta": 0.5}),
        (torch.square, {}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_transform_takes_every_kind(transform, fields, kind):
    built: Transform = functional.get_transform(transform, **fields)
    u, counts = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64), torch.tensor([1.0, 5.0, 9.0]).double()
    _assert_same(built(KINDS[kind](u)), built(u))
    _assert_same(built.estimate(KINDS[kind](counts), 10), built.estimate(counts, 10))
    _assert_same(built.estimate(counts, 10, KINDS[kind](counts * 0)), built.estimate(counts, 10))
    _assert_same(built.estimate_mean(KINDS[kind](u), 10), built.estimate_mean(u, 10))
    for call in (built, lambda u: built.estimate_mean(u, 10)):
        with pytest.raises(ArgumentTypeError, match="`u` must be real numbers"):
            call([0.5, None])
    with pytest.raises(ArgumentTypeError, match="`counts` must be real numbers"):
        built.estimate([0.5, None], 10)
