"""
Every formula, once: tensors in, tensors out, batched over any leading shape. Needs only torch.

Arrays, lists, tuples and pandas objects go in as tensors do; Python's floats count as float64.
"""

from hf_itp.functional.best_of_n import (
    best_of_n_law,
    best_of_poisson_law,
    soft_best_of_n_law,
    top_quantile_law,
    worst_of_n_law,
)
from hf_itp.functional.calibration import calibrate_rewards
from hf_itp.functional.divergence import kl_k1, kl_k3, sequence_log_ratios
from hf_itp.functional.ensembles import aggregate_rewards
from hf_itp.functional.finite_tradeoff import FiniteTradeoff, finite_tradeoff
from hf_itp.functional.normalization import in_reward_units, normalize_rewards
from hf_itp.functional.pessimism import beta_for_effective_sample_size, pessimism, weights_beyond_pool
from hf_itp.functional.rejection import (
    acceptance_probabilities,
    average_first_accept_law,
    first_accept_law,
    no_acceptance_probability,
    rejection_bound,
    rejection_law,
)
from hf_itp.functional.selection import effective_sample_size, sample_without_replacement
from hf_itp.functional.subsamples import (
    best_of_n_subsample_law,
    mean_subsample_law,
    top_ranks_subsample_law,
    worst_of_n_subsample_law,
)
from hf_itp.functional.tradeoff import AlignmentTradeoff, alignment_tradeoff, beta_for_kl
from hf_itp.functional.transforms import get_transform, list_transforms
from hf_itp.functional.win_rates import Estimate, best_of_n_win_rate, win_rate, worst_of_n_win_rate

__all__ = [
    # pessimism
    "pessimism",
    "weights_beyond_pool",
    "beta_for_effective_sample_size",
    # rejection sampling
    "rejection_bound",
    "acceptance_probabilities",
    "rejection_law",
    "first_accept_law",
    "average_first_accept_law",
    "no_acceptance_probability",
    # best-of-n and its relatives
    "best_of_n_law",
    "worst_of_n_law",
    "soft_best_of_n_law",
    "top_quantile_law",
    "best_of_poisson_law",
    # when the candidates are a random subset of a pool
    "best_of_n_subsample_law",
    "worst_of_n_subsample_law",
    "top_ranks_subsample_law",
    "mean_subsample_law",
    # scales
    "calibrate_rewards",
    "in_reward_units",
    "normalize_rewards",
    "aggregate_rewards",
    # transforms of calibrated rewards, and what they buy
    "get_transform",
    "list_transforms",
    "AlignmentTradeoff",
    "alignment_tradeoff",
    "beta_for_kl",
    "FiniteTradeoff",
    "finite_tradeoff",
    # measured from samples
    "Estimate",
    "win_rate",
    "best_of_n_win_rate",
    "worst_of_n_win_rate",
    "sequence_log_ratios",
    "kl_k1",
    "kl_k3",
    # drawing
    "effective_sample_size",
    "sample_without_replacement",
]
