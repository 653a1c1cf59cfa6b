"""
Compile the decoding step with torch.compile, if `generate` is given a `compile_config`.

The model becomes one graph, in which each layer's attention is an operator of ours; CUDA graphs are captured between
these operators. Compiling takes a minute, so the compiled step of a model serves all its later calls.
"""

from __future__ import annotations

import operator
import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import CompileConfig, GenerationConfig
from transformers.cache_utils import Cache

from hf_itp.models.view import model_view
from hf_itp.sampling.shared_prefix.attention import ATTENTION


class _TracedCache(Cache):
    """Empty cache that the graph sees. The operator writes to the cache of the running call."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class CompiledStep:
    """
    Compiled step: one token of every row, as the model itself would run it.

    Args:
        model (`PreTrainedModel`): The policy.
        config (`CompileConfig`): How to compile.
    """

    def __init__(self, model: Any, config: CompileConfig):
        settings = config.to_dict()
        if settings["dynamic"] is None:
            settings["dynamic"] = True  # rows come and go
        self.parts, self.config = list(model.modules())[1:], config
        self._forward = torch.compile(model_view(model, ATTENTION), **settings)
        self._cache = _TracedCache()

    def __call__(self, **inputs: Any) -> Any:
        """Return the model's outputs. Only the operator reads the active cache, not the graph."""
        # The outputs of the last step may be overwritten.
        torch.compiler.cudagraph_mark_step_begin()
        graphs = {name: self._cache if isinstance(value, Cache) else value for name, value in inputs.items()}
        return self._forward(**graphs)


_compiled: WeakKeyDictionary[Any, CompiledStep] = WeakKeyDictionary()
_lock = threading.Lock()


def compiled_step(model: Any, generation_config: GenerationConfig) -> CompiledStep | None:
    """Return the model's compiled step, made now if there is none with this config; `None` if none is asked for."""
    config = generation_config.compile_config
    if config is None or generation_config.disable_compile:
        return None
    with _lock:
        step = _compiled.get(model)
        parts = list(model.modules())[1:]
        same_parts = step is not None and len(parts) == len(step.parts) and all(map(operator.is_, parts, step.parts))
        if step is None or step.config != config or not same_parts:
            step = _compiled[model] = CompiledStep(model, config)
        return step
