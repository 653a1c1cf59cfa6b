"""
Run the model step by step for a batch of rows, each a candidate that continues one of the prompts.

A decoder hides where a row's past is kept: tokens go in, logits come out. Another way of sharing the prompt is another
class here. Knows nothing of sampling, stopping or rewards.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import transformers
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin
from transformers.generation import utils as generation_utils
from transformers.utils import ModelOutput

from hf_itp.errors import ItpWarning, UnsupportedModelError
from hf_itp.models.caches import is_filled, layers_of, own_cache, why_rows_cannot_be_copied
from hf_itp.sampling.call import DecodingCall, select_rows
from hf_itp.sampling.shared_prefix import CannotShare, SharedPrefixDecoder, UnknownInterface

# Classes of models whose user has been warned that they do not share.
_warned: set[type] = set()
_lock = threading.Lock()


class Decoder(Protocol):
    """Decoder of rows that continue the prompts of one call of `generate`."""

    path: str
    """How it treats the prompt, for the diagnostics."""
    path_reason: str
    """Why it treats the prompt so, for the diagnostics."""
    rows_can_leave: bool
    """Whether [`keep`] works."""
    rows_can_join: bool
    """Whether [`join`] works."""

    def start(self, prompt_index: torch.Tensor) -> torch.Tensor:
        """Begin a batch with one row per entry of `prompt_index`; return the logits `(R, V)` of their first tokens."""
        ...

    def advance(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits `(R, V)` after the newest token of `input_ids` `(R, L)`."""
        ...

    def keep(self, index: torch.Tensor) -> None:
        """Continue with only the rows at `index`, which ascends."""
        ...

    def join(self, prompt_index: torch.Tensor) -> torch.Tensor:
        """Add rows behind the others, however long these are; return the logits of their first tokens."""
        ...

    def bytes_per_row(self, length: int) -> int:
        """Return the memory that a row of `length` tokens needs; 0 if that is not known yet."""
        ...


class _ForwardDecoder:
    """Base of the decoders that use the model's own cache."""

    def __init__(self, call: DecodingCall, path_reason: str = ""):
        self.path_reason = path_reason
        self._call, self._model = call, call.model
        self._rows: dict[str, Any] = {}
        self._row_bytes = 0

    def advance(self, input_ids: torch.Tensor) -> torch.Tensor:
        new_tokens = 1 if self._rows.get("use_cache") else None
        inputs = self._model.prepare_inputs_for_generation(input_ids, next_sequence_length=new_tokens, **self._rows)
        outputs = self._model(**inputs, return_dict=True)
        self._rows = self._updated(outputs, self._rows)
        return _last_logits(outputs)

    def join(self, prompt_index: torch.Tensor) -> torch.Tensor:
        raise AssertionError("rows of a model's own cache are equally long")

    def bytes_per_row(self, length: int) -> int:
        return self._row_bytes * length // max(1, self._call.input_ids.shape[1])

    def _prefill(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        model_kwargs = dict(model_kwargs)
        # The prompt pass is transformers' own, so chunked prefill and multimodal inputs work. Replace the private
        # method once GenerationMixin has a public one.
        outputs = self._model._prefill(input_ids, self._call.generation_config, model_kwargs)
        model_kwargs = self._updated(outputs, model_kwargs)
        self._row_bytes = _num_bytes(model_kwargs) // len(input_ids)
        return _last_logits(outputs), model_kwargs

    def _updated(self, outputs: ModelOutput, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        return self._model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=self._model.config.is_encoder_decoder
        )


class ExpandedCacheDecoder(_ForwardDecoder):
    """
    Decoder that runs each prompt once, and copies its cache to each row by `Cache.reorder_cache`. Finished rows leave.
    """

    path = "expanded"
    rows_can_leave, rows_can_join = True, False

    def __init__(self, call: DecodingCall, path_reason: str = ""):
        super().__init__(call, path_reason)
        self._prompt_logits, model_kwargs = self._prefill(call.input_ids, _with_own_cache(call.model_kwargs))
        # Consumed by the prompt pass; left in, they would be copied to every row.
        consumed = getattr(generation_utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ())
        self._prompts = {name: value for name, value in model_kwargs.items() if name not in consumed}
        self.caches = _caches(self._prompts)

    def start(self, prompt_index: torch.Tensor) -> torch.Tensor:
        self._rows = select_rows(_with_own_cache(self._prompts), prompt_index, len(self._call))
        return self._prompt_logits[prompt_index.to(self._prompt_logits.device)]

    def keep(self, index: torch.Tensor) -> None:
        self._rows = select_rows(self._rows, index, num_rows=None)


class RepeatedPromptDecoder(_ForwardDecoder):
    """
    Decoder that runs the prompt of every row, as `generate(num_return_sequences=N)` does.

    For models without a cache, or with one whose rows cannot be copied. Rows stay to the end.
    """

    path = "repeated"
    rows_can_leave = rows_can_join = False

    def start(self, prompt_index: torch.Tensor) -> torch.Tensor:
        rows = select_rows(_with_own_cache(self._call.model_kwargs), prompt_index, len(self._call))
        logits, self._rows = self._prefill(self._call.input_ids[prompt_index.to(self._call.input_ids.device)], rows)
        return logits

    def keep(self, index: torch.Tensor) -> None:
        raise AssertionError("rows of a repeated prompt stay to the end")


def make_decoder(call: DecodingCall) -> Decoder:
    """Return the decoder for a call's prompts: one that runs each prompt once, if the model's cache allows it."""
    model, generation_config = call.model, call.generation_config
    try:
        return SharedPrefixDecoder(call)
    except CannotShare as error:
        reason = str(error)
        if isinstance(error, UnknownInterface):
            _warn_of_the_slower_way(type(model), reason)
    if generation_config.compile_config is not None and not generation_config.disable_compile:
        warnings.warn(
            "`compile_config` has an effect only on calls whose prompts can be shared. The prompts of this one cannot "
            f"({reason}), so nothing is compiled. Leave it out.",
            ItpWarning,
            stacklevel=2,
        )
    if not call.model_kwargs.get("use_cache"):
        return RepeatedPromptDecoder(call, reason)
    obstacle = _why_rows_cannot_be_copied(_caches(call.model_kwargs))
    if obstacle is None:
        # Some models make their cache in the prompt pass, so check again afterwards whether its rows can be copied.
        expanded = ExpandedCacheDecoder(call, reason)
        _check_filled(model, expanded.caches)
        obstacle = _why_rows_cannot_be_copied(expanded.caches) or _where_else_the_past_is(model, expanded.caches)
        if obstacle is None:
            return expanded
    return RepeatedPromptDecoder(call, obstacle if obstacle == reason else f"{reason}; {obstacle}")


def _check_filled(model: Any, caches: list[Cache]) -> None:
    """Refuse a checkpoint's code that knows the cache by another name; plain `generate` would decode without one."""
    layers = [layer for cache in caches for layer in layers_of(cache)]
    recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    if layers and not recurrent and not model._is_stateful and not any(map(is_filled, caches)):
        raise UnsupportedModelError(
            f"{type(model).__name__} must fill the cache that transformers {transformers.__version__} gives it, got "
            "an empty one after the prompt, so no token would see those before it. Pass use_cache=False, or install "
            "the release of transformers that the model's code was written for."
        )


def _warn_of_the_slower_way(model_class: type, reason: str) -> None:
    with _lock:
        if model_class in _warned:
            return
        _warned.add(model_class)
    warnings.warn(
        f"{model_class.__name__} does not share its prompts, which costs time and memory and changes no response: "
        f"{reason} (transformers {transformers.__version__}). Install a release of transformers that this release of "
        "hf_itp supports.",
        ItpWarning,
        stacklevel=2,
    )


def _caches(model_kwargs: dict[str, Any]) -> list[Cache]:
    return [value for value in model_kwargs.values() if isinstance(value, Cache)]


def _why_rows_cannot_be_copied(caches: list[Cache]) -> str | None:
    return next(filter(None, map(why_rows_cannot_be_copied, caches)), None)


def _where_else_the_past_is(model: Any, caches: list[Cache]) -> str | None:
    """Return where a row's past is kept besides the caches after the prompt pass, or `None` if nowhere."""
    if not caches:
        return "the model keeps no cache that is known"
    recurrent = [
        layer for cache in caches for layer in layers_of(cache) if isinstance(layer, LinearAttentionCacheLayerMixin)
    ]
    # A recurrent model whose cache stays empty (recurrent_gemma) keeps its states in its modules.
    filled = all(any(layer.is_conv_states_initialized.values()) for layer in recurrent)
    outside = not filled if recurrent else model._is_stateful
    return "the model keeps states outside of its cache" if outside else None


def _with_own_cache(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: own_cache(value) if isinstance(value, Cache) else value for name, value in model_kwargs.items()}


def _last_logits(outputs: Any) -> torch.Tensor:
    # A copy: a view would keep the logits of the whole prompt alive.
    return outputs.logits[:, -1].to(dtype=torch.float32, copy=True)


def _num_bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value, set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, seen)
    elif isinstance(value, Cache) or type(value).__module__ == "transformers.cache_utils":
        yield from _tensors(vars(value), seen)
