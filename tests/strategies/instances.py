"""
Strategies on which every promise of the contract is checked: all that are registered, and variants of some.

A new strategy joins by its line in the registry. If it has required fields, each is 2.5.
"""

from __future__ import annotations

from dataclasses import MISSING, fields

from hf_itp.strategies import Pessimism, Strategy, list_strategies
from hf_itp.strategies.registry import strategy_class


def instance_of(name: str) -> Strategy:
    cls = strategy_class(name)
    return cls(**{field.name: 2.5 for field in fields(cls) if field.default is MISSING})


STRATEGIES: dict[str, Strategy] = {
    **{name: instance_of(name) for name in list_strategies()},
    "pessimism": Pessimism(beta=0.3),
    "pessimism, zscore": Pessimism(beta=0.3, normalize="zscore"),
    "pessimism, quantile": Pessimism(beta=0.1, normalize="quantile"),
    "pessimism, bounded": Pessimism(beta=0.3, reward_bound=0.9),
    "pessimism, fresh": Pessimism(beta=0.3, pool="fresh"),
    "pessimism, fresh, quantile": Pessimism(beta=0.1, pool="fresh", normalize="quantile"),
}

IN_ORDER = ("best_of_poisson", "pessimism, fresh", "pessimism, fresh, quantile")
"""Those whose law depends on the order in which candidates were drawn."""
