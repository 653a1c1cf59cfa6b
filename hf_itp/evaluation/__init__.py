"""Looking at pools: what the candidates were worth and what a strategy makes of them."""

from hf_itp.evaluation.plots import plot_pool

__all__ = ["plot_pool"]
