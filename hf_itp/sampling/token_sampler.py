"""
From the logits of a step to the next token of every row.

The plain case takes no processor object: temperature, top-k, top-p and min-p are one function. Where a caller or a
checkpoint asks for anything else, exactly the processors transformers prepared are applied, in their order.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation import logits_process as processors
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from hf_itp.functional.categorical import sample_categorical
from hf_itp.functional.warping import warp_logits

# In the order transformers applies them, with the keyword of `warp_logits` each one stands for.
_FUSED = {
    processors.TemperatureLogitsWarper: "temperature",
    processors.TopKLogitsWarper: "top_k",
    processors.TopPLogitsWarper: "top_p",
    processors.MinPLogitsWarper: "min_p",
}

# Processors whose effect on a row depends on that row's tokens alone, so that rows may come, go and be split freely.
_ROWWISE = (
    *_FUSED,
    processors.TopHLogitsWarper,
    processors.TypicalLogitsWarper,
    processors.EpsilonLogitsWarper,
    processors.EtaLogitsWarper,
    processors.SequenceBiasLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.NoBadWordsLogitsProcessor,
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.ForcedBOSTokenLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.InfNanRemoveLogitsProcessor,
    processors.ExponentialDecayLengthPenalty,
    processors.SuppressTokensLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.LogitNormalization,
    processors.RepetitionPenaltyLogitsProcessor,
)


@dataclass
class TokenSampler:
    """
    Draws the next token of each row.

    Args:
        logits_processor (`LogitsProcessorList`): What transformers prepared for this call, warpers included.
        do_sample (`bool`): Draw from the softmax; the most probable token otherwise.
    """

    logits_processor: LogitsProcessorList
    do_sample: bool
    warp: dict[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self.warp = _fused_settings(self.logits_processor)

    @property
    def rows_are_independent(self) -> bool:
        """
        Whether rows may be split into chunks and dropped. Otherwise (a custom processor, one that tells rows apart by
        their position) a batch has to hold every prompt once, in order, from the first step to the last.
        """
        return all(_type_in(processor, _ROWWISE) for processor in self.logits_processor)

    def for_rows(self, prompt_index: torch.Tensor) -> TokenSampler:
        """A sampler for a batch whose rows continue the prompts `prompt_index`, with processors of its own."""
        if self.warp is not None:
            return self
        own = LogitsProcessorList([_for_rows(processor, prompt_index) for processor in self.logits_processor])
        return TokenSampler(own, self.do_sample)

    def process(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        Logits `(R, V)` of what is drawn from, given the raw ones, float32, and prompt and response so far `(R, L)`.
        """
        if self.warp is not None:
            return warp_logits(logits, **self.warp)
        return self.logits_processor(input_ids, logits)  # type: ignore[arg-type]

    def draw(self, processed: torch.Tensor, keys: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """
        Args:
            processed (`torch.FloatTensor` of shape `(R, V)`): From [`process`].
            keys (`torch.LongTensor` of shape `(R,)`): Each row's stream of random numbers.
            step (`int` or `torch.LongTensor` of shape `(R,)`): How many tokens the responses have.

        Returns:
            `torch.LongTensor` of shape `(R,)`.
        """
        return sample_categorical(processed, keys, step) if self.do_sample else processed.argmax(dim=-1)


def _type_in(processor: LogitsProcessor, types: tuple[type, ...]) -> bool:
    # The exact type: a subclass of a user's may do anything.
    return type(processor) in types


def _fused_settings(logits_processor: LogitsProcessorList) -> dict[str, Any] | None:
    order = list(_FUSED)
    if not all(_type_in(processor, tuple(order)) for processor in logits_processor):
        return None
    places = [order.index(type(processor)) for processor in logits_processor]
    if places != sorted(set(places)):
        return None
    return {_FUSED[type(processor)]: getattr(processor, _FUSED[type(processor)]) for processor in logits_processor}


def _for_rows(processor: LogitsProcessor, prompt_index: torch.Tensor) -> LogitsProcessor:
    processor = copy.deepcopy(processor)
    # The one stateless processor of transformers that keeps a tensor per prompt: how much left padding to ignore.
    if type(processor) is processors.RepetitionPenaltyLogitsProcessor:
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, torch.Tensor) and ignored.dim() > 0:
            processor.prompt_ignore_length = ignored[prompt_index.to(ignored.device)]
    return processor
