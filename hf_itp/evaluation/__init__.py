"""Judge what was drawn: plots of pools, and a trained policy against its reference policy."""

from hf_itp.evaluation.plots import plot_pool
from hf_itp.evaluation.policy_evaluation import PolicyEvaluation, evaluate_policy

__all__ = ["PolicyEvaluation", "evaluate_policy", "plot_pool"]
