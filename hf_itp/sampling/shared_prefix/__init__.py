"""The prompt's keys and values once per prompt, however many candidates continue it."""

from hf_itp.sampling.shared_prefix.decoder import SharedPrefixDecoder, can_share_prefix

__all__ = ["SharedPrefixDecoder", "can_share_prefix"]
