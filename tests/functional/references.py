"""Slow references: loops straight from the formulas, and the random pools they are compared on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch

REFERENCE_VALUES = json.loads((Path(__file__).parent.parent / "data" / "reference_values.json").read_text())


def random_pools(count: int, seed: int, largest: int = 40) -> Iterator[list[float]]:
    """Yield pools of 1 to `largest` rewards on several scales; every second one is rounded, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        size = int(torch.randint(1, largest + 1, (), generator=generator))
        scale = 10.0 ** int(torch.randint(-3, 4, (), generator=generator))
        pool = torch.randn(size, dtype=torch.float64, generator=generator)
        if index % 2:
            pool = (pool * 2).round() / 2
        yield (pool * scale).tolist()


def loop_pessimism(rewards: list[float], beta: float) -> tuple[list[float], float]:
    """
    Drop the lowest reward in ascending order until the normalizer lies between it and the next.

    Computes in rationals, so that all rounding found by a comparison is the package's own.
    """
    exact = [Fraction(reward) for reward in rewards]
    ascending = sorted(exact)
    size = len(rewards)
    total, kept, previous, normalizer = sum(exact, Fraction()), size, None, Fraction()
    for index, reward in enumerate(ascending):
        normalizer = (total - size * Fraction(beta)) / kept
        if ((previous is None or previous <= normalizer) and normalizer < reward) or index == size - 1:
            break
        total, kept, previous = total - reward, kept - 1, reward
    weights = [float(max(Fraction(), (reward - normalizer) / Fraction(beta))) for reward in exact]
    return weights, float(normalizer)


def sparsemax(logits: list[float]) -> list[float]:
    """Project on the simplex in the Euclidean norm (Martins and Astudillo 2016, Algorithm 1)."""
    descending = sorted(logits, reverse=True)
    support = max(k for k in range(1, len(logits) + 1) if 1 + k * descending[k - 1] > sum(descending[:k]))
    threshold = (sum(descending[:support]) - 1) / support
    return [max(0.0, logit - threshold) for logit in logits]


def first_accepts(acceptance: list[float]) -> tuple[list[float], float]:
    passed, law = 1.0, []
    for probability in acceptance:
        law.append(passed * probability)
        passed *= 1 - probability
    return law, passed


def first_accepts_over_orders(acceptance: list[float]) -> list[float]:
    orders = list(itertools.permutations(range(len(acceptance))))
    law = [0.0] * len(acceptance)
    for order in orders:
        for index, probability in zip(order, first_accepts([acceptance[i] for i in order])[0], strict=True):
            law[index] += probability / len(orders)
    return law


def best_of_prefix(rewards: list[float], size: int) -> list[float]:
    """Return the law of the best of the first `size` candidates, ties shared."""
    best = max(rewards[:size])
    ties = sum(reward == best for reward in rewards[:size])
    return [float(index < size and reward == best) / ties for index, reward in enumerate(rewards)]


def best_of_subsets(rewards: list[float], size: int) -> list[float]:
    law = [0.0] * len(rewards)
    subsets = list(itertools.combinations(range(len(rewards)), size))
    for subset in subsets:
        best = max(rewards[index] for index in subset)
        winners = [index for index in subset if rewards[index] == best]
        for index in winners:
            law[index] += 1 / len(winners) / len(subsets)
    return law


def half_tie_quantile(reward: float, references: list[float]) -> float:
    return sum((reward > other) + 0.5 * (reward == other) for other in references) / len(references)


def doubles(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
