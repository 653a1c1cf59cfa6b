"""
Train a policy for the strategy it will be decoded with: CTRL, by reinforcement learning or by regression.
"""

from hf_itp.training.arguments import CTRLArguments, QuantileRegressionArguments
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.quantile_regression import QuantileRegressionTrainer
from hf_itp.training.trainer import CTRLTrainer

__all__ = [
    "CTRLArguments",
    "CTRLObjective",
    "CTRLTrainer",
    "QuantileRegressionArguments",
    "QuantileRegressionTrainer",
]
