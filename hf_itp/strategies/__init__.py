"""
The rules that pick among candidates, one per file, and the registry of their names.
"""

from hf_itp.strategies.base import Strategy
from hf_itp.strategies.best_of_n import BestOfN
from hf_itp.strategies.best_of_poisson import BestOfPoisson
from hf_itp.strategies.pessimism import Pessimism
from hf_itp.strategies.registry import get_strategy, list_strategies
from hf_itp.strategies.soft_best_of_n import SoftBestOfN
from hf_itp.strategies.top_quantile import TopQuantile
from hf_itp.strategies.worst_of_n import WorstOfN

__all__ = [
    "Strategy",
    "get_strategy",
    "list_strategies",
    "BestOfN",
    "Pessimism",
    "SoftBestOfN",
    "TopQuantile",
    "BestOfPoisson",
    "WorstOfN",
]
