"""
Inference-time alignment inside Hugging Face transformers: draw candidates, score them, select without being fooled.

`import hf_itp` teaches every model's `generate` the `strategy=` keyword. It imports nothing heavy by itself.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from hf_itp._version import __version__
from hf_itp.errors import ItpError, ItpWarning, ScoringError
from hf_itp.generation.patching import disable, enable, enable_with_transformers

if TYPE_CHECKING:
    from hf_itp.calibration import CalibratedReward, RewardCalibrator
    from hf_itp.generation.decoding import StrategyDecoding
    from hf_itp.generation.early_rejection import EarlyRejection
    from hf_itp.generation.output import StrategyOutput
    from hf_itp.hub import push_to_hub
    from hf_itp.policies.policy import Policy
    from hf_itp.rewards import RewardFunction, RewardModel
    from hf_itp.strategies import Strategy, get_strategy, list_strategies, register
    from hf_itp.training import (
        CTRLArguments,
        CTRLTrainer,
        QuantileRegressionArguments,
        QuantileRegressionTrainer,
    )

_HOMES = {
    "CTRLArguments": "hf_itp.training",
    "CTRLTrainer": "hf_itp.training",
    "CalibratedReward": "hf_itp.calibration",
    "QuantileRegressionArguments": "hf_itp.training",
    "QuantileRegressionTrainer": "hf_itp.training",
    "RewardCalibrator": "hf_itp.calibration",
    "EarlyRejection": "hf_itp.generation.early_rejection",
    "Policy": "hf_itp.policies.policy",
    "StrategyDecoding": "hf_itp.generation.decoding",
    "StrategyOutput": "hf_itp.generation.output",
    "RewardFunction": "hf_itp.rewards",
    "RewardModel": "hf_itp.rewards",
    "Strategy": "hf_itp.strategies",
    "get_strategy": "hf_itp.strategies",
    "push_to_hub": "hf_itp.hub",
    "list_strategies": "hf_itp.strategies",
    "register": "hf_itp.strategies",
}

__all__ = [
    "CTRLArguments",
    "CTRLTrainer",
    "CalibratedReward",
    "EarlyRejection",
    "ItpError",
    "ItpWarning",
    "Policy",
    "QuantileRegressionArguments",
    "QuantileRegressionTrainer",
    "RewardCalibrator",
    "RewardFunction",
    "RewardModel",
    "ScoringError",
    "Strategy",
    "StrategyDecoding",
    "StrategyOutput",
    "__version__",
    "disable",
    "enable",
    "get_strategy",
    "list_strategies",
    "push_to_hub",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_itp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("HF_ITP_DISABLE", "").lower() not in ("1", "true", "yes"):
    enable_with_transformers()
