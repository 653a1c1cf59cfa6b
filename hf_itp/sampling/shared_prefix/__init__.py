"""Keep a prompt's keys and values once, however many candidates continue it."""

from hf_itp.sampling.shared_prefix.cache import CannotShare, UnknownInterface
from hf_itp.sampling.shared_prefix.decoder import SharedPrefixDecoder

__all__ = ["CannotShare", "SharedPrefixDecoder", "UnknownInterface"]
