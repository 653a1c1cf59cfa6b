"""
Reference rewards per prompt, and rewards calibrated by them. Knows nothing of strategies or training.
"""

from hf_itp.calibration.calibrated_reward import CalibratedReward
from hf_itp.calibration.calibrator import RewardCalibrator
from hf_itp.calibration.predictor import QuantilePredictor

__all__ = ["CalibratedReward", "QuantilePredictor", "RewardCalibrator"]
