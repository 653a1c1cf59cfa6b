"""The strategies every promise of the contract is checked on. A new strategy is one line here."""

from __future__ import annotations

from hf_itp.strategies import (
    BestOfN,
    BestOfPoisson,
    Pessimism,
    SoftBestOfN,
    Strategy,
    TopQuantile,
    WorstOfN,
)

STRATEGIES: dict[str, Strategy] = {
    "best_of_n": BestOfN(),
    "worst_of_n": WorstOfN(),
    "soft_best_of_n": SoftBestOfN(temperature=0.4),
    "top_quantile": TopQuantile(multiplier=2.5),
    "best_of_poisson": BestOfPoisson(rate=3.0),
    "pessimism": Pessimism(beta=0.3),
    "pessimism, zscore": Pessimism(beta=0.3, normalize="zscore"),
    "pessimism, quantile": Pessimism(beta=0.1, normalize="quantile"),
    "pessimism, bounded": Pessimism(beta=0.3, reward_bound=0.9),
    "pessimism, fresh": Pessimism(beta=0.3, pool="fresh"),
    "pessimism, fresh, quantile": Pessimism(beta=0.1, pool="fresh", normalize="quantile"),
}

IN_ORDER = ("best_of_poisson", "pessimism, fresh", "pessimism, fresh, quantile")
"""Those whose law depends on the order in which candidates were drawn."""
