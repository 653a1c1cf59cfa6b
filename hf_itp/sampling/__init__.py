"""Draw N candidates per prompt from a policy. Knows nothing of rewards or strategies."""

from hf_itp.sampling.drawing import draw_responses
from hf_itp.sampling.sampler import CandidateSampler

__all__ = ["CandidateSampler", "draw_responses"]
