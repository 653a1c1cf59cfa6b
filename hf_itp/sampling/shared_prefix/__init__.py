"""The prompt's keys and values once per prompt, however many candidates continue it."""

from hf_itp.sampling.shared_prefix.decoder import SharedPrefixDecoder, can_share_prefix, prompts_are_plain, same_logits

__all__ = ["SharedPrefixDecoder", "can_share_prefix", "prompts_are_plain", "same_logits"]
