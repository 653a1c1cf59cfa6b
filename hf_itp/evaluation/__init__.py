"""Plot pools: the rewards of the candidates, and the probabilities a strategy gives them."""

from hf_itp.evaluation.plots import plot_pool

__all__ = ["plot_pool"]
