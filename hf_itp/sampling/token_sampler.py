"""
Turn the logits of a step into the next token of every row.

The plain case needs no processor object: temperature, top-k, top-p and min-p are one function. If a caller or a
checkpoint asks for anything else, the processors that transformers prepared are applied as they are, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation import logits_process as processors
from transformers.generation.logits_process import LogitsProcessorList

from hf_itp.functional.kernels.categorical import most_probable, sample_categorical
from hf_itp.functional.kernels.warping import warp_logits
from hf_itp.sampling.row_calls import of_rows

# In the order transformers applies them, with the keyword of `warp_logits` each one stands for.
_FUSED = {
    processors.TemperatureLogitsWarper: "temperature",
    processors.TopKLogitsWarper: "top_k",
    processors.TopPLogitsWarper: "top_p",
    processors.MinPLogitsWarper: "min_p",
}


@dataclass
class TokenSampler:
    """
    Sampler of the next token of each row.

    Args:
        logits_processor (`LogitsProcessorList`): Processors that transformers prepared for this call, with warpers.
        do_sample (`bool`): Draw from the softmax; otherwise take the most probable token.
        rows_stay (`bool`, *optional*, defaults to `False`): Whether the processors are arranged for the rows of one
            batch ([`~sampling.row_calls.RowCalls`]). Otherwise all of them are row-wise.
    """

    logits_processor: LogitsProcessorList
    do_sample: bool
    rows_stay: bool = False
    warp: dict[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self.warp = _fused_settings(self.logits_processor)

    def for_rows(self, prompt_index: torch.Tensor) -> TokenSampler:
        """Return the sampler for a batch whose rows continue the prompts `prompt_index`."""
        if self.warp is not None or self.rows_stay:
            return self
        own = LogitsProcessorList([of_rows(processor, prompt_index) for processor in self.logits_processor])
        return TokenSampler(own, self.do_sample)

    def process(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        Return the logits `(R, V)` to draw from, given the model's in float32, and prompt and response so far `(R, L)`.
        """
        if self.warp is not None:
            return warp_logits(logits, **self.warp)
        return self.logits_processor(input_ids, logits)  # type: ignore[arg-type]

    def draw(
        self, processed: torch.Tensor, keys: torch.Tensor, step: int | torch.Tensor, unfinished: torch.Tensor
    ) -> torch.Tensor:
        """
        Draw the next token of each row.

        Args:
            processed (`torch.FloatTensor` of shape `(R, V)`): From [`process`].
            keys (`torch.LongTensor` of shape `(R,)`): Each row's stream of random numbers.
            step (`int` or `torch.LongTensor` of shape `(R,)`): How many tokens the responses have.
            unfinished (`torch.BoolTensor` of shape `(R,)`): Rows whose token matters.

        Returns:
            `torch.LongTensor` of shape `(R,)`.

        Raises:
            `DistributionError`: If an unfinished row has nothing to draw from.
        """
        unfinished = unfinished.to(processed.device)
        if self.do_sample:
            return sample_categorical(processed, keys, step, unfinished)
        return most_probable(processed, unfinished)


def _fused_settings(logits_processor: LogitsProcessorList) -> dict[str, Any] | None:
    order = list(_FUSED)
    if not all(type(processor) in _FUSED for processor in logits_processor):
        return None
    places = [order.index(type(processor)) for processor in logits_processor]
    if places != sorted(set(places)):
        return None
    settings = {_FUSED[type(processor)]: getattr(processor, _FUSED[type(processor)]) for processor in logits_processor}
    # A keyword can replace a processor only if everything else about it is as its class makes it.
    for processor, (name, value) in zip(logits_processor, settings.items(), strict=True):
        if vars(processor) != vars(type(processor)(**{name: value})):
            return None
    return settings
