"""
Every formula, once: tensors in, tensors out, batched over any leading shape, with torch alone.
"""

from hf_itp.functional.best_of_n import (
    best_of_n_law,
    best_of_n_subsample_law,
    best_of_poisson_law,
    soft_best_of_n_law,
    top_quantile_law,
    worst_of_n_law,
)
from hf_itp.functional.calibration import calibrate_rewards
from hf_itp.functional.ensembles import aggregate_rewards
from hf_itp.functional.normalization import normalize_rewards
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
    "best_of_n_subsample_law",
    "soft_best_of_n_law",
    "top_quantile_law",
    "best_of_poisson_law",
    # scales
    "calibrate_rewards",
    "normalize_rewards",
    "aggregate_rewards",
    # drawing
    "effective_sample_size",
    "sample_without_replacement",
]
