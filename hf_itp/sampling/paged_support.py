"""
What transformers' continuous batching can run, found out beforehand: some of what it cannot it drops without a word.
"""

from __future__ import annotations

import math
from typing import Any

import psutil
import torch
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.utils.generic import is_flash_attention_requested

from hf_itp.errors import ArgumentError, UnsupportedModelError
from hf_itp.sampling.sampler import forwards_are_synchronized
from hf_itp.sampling.shared_prefix import prompts_are_plain
from hf_itp.sampling.shared_prefix.view import can_be_viewed
from hf_itp.sampling.token_sampler import TokenSampler

_PAGED_LAYERS = {"full_attention", "sliding_attention"}
_REMEDY = "Pass engine='native'."
# Flash kernels take pages of 256 tokens; anywhere else small ones leave less of the last page empty.
_FLASH_PAGE, _PAGE = 256, 32
# Most tokens of one pass. Each comes with a row of the mask as wide as all pages.
_BATCH_TOKENS = 512
# Pages held free: requests are let in only while 15 % are.
_SLACK = 1.25
_MEMORY_SHARE = 0.5


def check_pages_can_serve(
    model: Any,
    input_ids: torch.Tensor,
    model_kwargs: dict[str, Any],
    token_sampler: TokenSampler,
    stopping_criteria: StoppingCriteriaList,
) -> None:
    """
    Raises:
        `UnsupportedModelError`: If continuous batching cannot run the model, or runs it wrongly.
        `ArgumentError`: If it would drop a processor, a stopping criterion or an input.
    """
    if (reason := why_no_pages(model)) is not None:
        raise UnsupportedModelError(f"engine='paged' cannot run {type(model).__name__}: {reason}. {_REMEDY}")
    if model.training:
        raise ArgumentError(
            "engine='paged' needs the model in evaluation mode, but it is in training mode, whose dropout continuous "
            "batching switches off. Call model.eval(), or pass engine='native'."
        )
    if token_sampler.warp is None:
        names = ", ".join(type(processor).__name__ for processor in token_sampler.logits_processor)
        raise ArgumentError(
            f"engine='paged' takes temperature, top_k, top_p and min_p, but the call has {names}, of which continuous "
            f"batching drops what it does not know. {_REMEDY}"
        )
    for criterion in stopping_criteria:
        if type(criterion) not in (MaxLengthCriteria, EosTokenCriteria):
            raise ArgumentError(
                f"engine='paged' stops at end tokens and `max_new_tokens`, but the call has a "
                f"{type(criterion).__name__} (from `stop_strings`, `max_time` or `stopping_criteria`), which "
                f"continuous batching has no place for. {_REMEDY}"
            )
    if not prompts_are_plain(model, input_ids, model_kwargs):
        raise ArgumentError(
            "engine='paged' takes plain token prompts with their usual positions, but the call has inputs beside "
            f"them ({', '.join(sorted(model_kwargs)) or 'no cache'}). {_REMEDY}"
        )


def attention_for_pages(model: Any) -> str | None:
    """Attention the view has to have where the model's own cannot read pages."""
    return "paged|eager" if model.config._attn_implementation == "eager" else None


def page_budget(model: Any, lengths: list[int]) -> dict[str, Any]:
    """
    Settings of `ContinuousBatchingConfig` that hold requests of these lengths at once. Where half of the free memory
    would not do, how much to take is left to continuous batching, which lets requests wait.
    """
    # Here and not above: other versions of transformers, which the other engine serves, may not have them.
    from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

    config = model.config.get_text_config()
    page = _FLASH_PAGE if is_flash_attention_requested(config) else _PAGE
    blocks = math.ceil(sum(math.ceil(length / page) + 1 for length in lengths) * _SLACK) + 2
    heads = 2 * config.num_hidden_layers * find_num_key_value_heads(config)
    needed = blocks * page * heads * find_head_dim(config) * model.dtype.itemsize
    on_cuda = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_cuda else psutil.virtual_memory().available
    return {
        "page_size": page,
        "num_blocks": blocks if needed <= free * _MEMORY_SHARE else None,
        "max_batch_tokens": max(_BATCH_TOKENS, len(lengths)),
    }


def why_no_pages(model: Any) -> str | None:
    """What of the model continuous batching cannot run, or `None`."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if config is not model.config or model.main_input_name != "input_ids":
        return "it takes more than text"
    if forwards_are_synchronized(model) or getattr(model, "_device_mesh", None) is not None:
        return "its weights are spread over processes"
    if not can_be_viewed(model):
        return "its forward is wrapped, by accelerate's hooks or torch.compile"
    other = set(getattr(config, "layer_types", None) or ()) - _PAGED_LAYERS
    if other or model._is_stateful or not model._supports_attention_backend:
        return f"its layers ({', '.join(sorted(other)) or 'with an attention of their own'}) keep no pages"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps its logits, which paged attention leaves out"
    if getattr(config, "kv_lora_rank", None):
        return "its latent attention has keys and values of different widths"
    if model.config._attn_implementation not in ("sdpa", "eager", "flash_attention_2", "flash_attention_3"):
        return f"its attention is {model.config._attn_implementation!r}. Load it with attn_implementation='sdpa'"
    return None
