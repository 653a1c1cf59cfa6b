"""
Anything that scores a response to a prompt: reward models, plain functions, ensembles of both.
"""

from hf_itp.rewards.base import RewardFunction
from hf_itp.rewards.callables import CallableReward
from hf_itp.rewards.ensemble import RewardEnsemble
from hf_itp.rewards.process_reward_model import ProcessRewardModel
from hf_itp.rewards.resolve import as_reward_function, clear_loaded_reward_models
from hf_itp.rewards.retried import retried
from hf_itp.rewards.reward_model import RewardModel

__all__ = [
    "RewardFunction",
    "RewardModel",
    "ProcessRewardModel",
    "CallableReward",
    "RewardEnsemble",
    "as_reward_function",
    "retried",
    "clear_loaded_reward_models",
]
