"""
Bundle what `generate` hands to a decoding method into one value for the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.utils import ModelOutput

from hf_itp.models.host_names import CACHE_NAMES
from hf_itp.sampling.row_calls import of_rows
from hf_itp.sampling.streams import PromptKey

# Inputs with one row per prompt. Others, such as pictures, may have any number, so no prompts can be cut out of them.
_ROWWISE_INPUTS = {
    "attention_mask",
    "decoder_attention_mask",
    "decoder_input_ids",
    "encoder_outputs",
    "position_ids",
    "token_type_ids",
    *CACHE_NAMES,
}


@dataclass(frozen=True)
class DecodingCall:
    """
    The prompts of one call of `generate`, with everything their responses are drawn with.

    Args:
        model (`PreTrainedModel`): The policy.
        input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts, left-padded; decoder start tokens for
            encoder-decoders.
        logits_processor (`LogitsProcessorList`), stopping_criteria (`StoppingCriteriaList`),
            generation_config (`GenerationConfig`), model_kwargs (`dict`): As `generate` prepares them.
        prompt_keys (`list[bytes]`): Fingerprint of each prompt ([`~sampling.streams.prompt_keys`]).
        batch_size (`int`, *optional*): Maximum rows in one batch. Defaults to what fits in half of the free memory.
        progress (`bool`, *optional*): Show a progress bar. By default only on calls longer than 5 seconds.
    """

    model: Any
    input_ids: torch.Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    prompt_keys: Sequence[PromptKey] = ()
    batch_size: int | None = None
    progress: bool | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> DecodingCall:
        """Collect the arguments of transformers' `custom_generate` hook."""
        return cls(model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """Mask of the `input_ids` that are not padding; `None` if none is, as always in an encoder-decoder."""
        return None if self.model.config.is_encoder_decoder else self.model_kwargs.get("attention_mask")

    @property
    def is_rowwise(self) -> bool:
        """Whether every input of the model has one row per prompt, so that [`rows`] can cut out a part."""
        plain = (bool, int, float, str, type(None))
        return all(name in _ROWWISE_INPUTS or isinstance(value, plain) for name, value in self.model_kwargs.items())

    def rows(self, index: Sequence[int]) -> DecodingCall:
        """Return the call for the prompts at `index`. Needs row-wise inputs and row-wise processors."""
        chosen = torch.tensor(index, dtype=torch.long, device=self.input_ids.device)
        return replace(
            self,
            input_ids=self.input_ids[chosen],
            logits_processor=LogitsProcessorList([of_rows(one, chosen) for one in self.logits_processor]),
            model_kwargs=select_rows(self.model_kwargs, chosen, len(self)),
            prompt_keys=[self.prompt_keys[row] for row in index],
        )


def select_rows(model_kwargs: dict[str, Any], index: torch.Tensor, num_rows: int | None) -> dict[str, Any]:
    """
    Return the keyword arguments for the rows at `index`, which may repeat rows and leave some out.

    Args:
        model_kwargs (`dict`): Keyword arguments of `forward`; the cache among them is changed in place.
        index (`torch.LongTensor` of shape `(R,)`): Rows to take.
        num_rows (`int`, *optional*): Number of rows they have now; a tensor with another first dimension is not
            row-wise and stays. `None` if all tensors are row-wise.
    """
    return {name: _select(name, value, index, num_rows) for name, value in model_kwargs.items()}


def _select(name: str, value: Any, index: torch.Tensor, num_rows: int | None) -> Any:
    if isinstance(value, Cache):
        value.reorder_cache(index)  # type: ignore[arg-type]
        return value
    if isinstance(value, ModelOutput):
        return type(value)(**select_rows(dict(value), index, num_rows))
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    # Multimodal rotary positions are (3, rows, length).
    dim = 1 if name == "position_ids" and value.dim() == 3 else 0
    if num_rows is not None and value.shape[dim] != num_rows:
        return value
    return value.index_select(dim, index.to(value.device))
