"""
The decoding step through torch.compile, where `generate` is given a `compile_config`.

The model is one graph in which each layer's attention is an operator of ours; with CUDA graphs, they are captured
between these operators. Compiling takes a minute, so what was compiled for a model serves all its later calls.
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
    """The cache as the graph sees it: without content. The operator writes to the one of the call that runs."""

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
    Runs one token of every row, as the model itself would.

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
        """The model's outputs; the active cache is read by the operator and not by the graph."""
        # What the last step gave may be written over.
        torch.compiler.cudagraph_mark_step_begin()
        graphs = {name: self._cache if isinstance(value, Cache) else value for name, value in inputs.items()}
        return self._forward(**graphs)


_compiled: WeakKeyDictionary[Any, CompiledStep] = WeakKeyDictionary()
_lock = threading.Lock()


def compiled_step(model: Any, generation_config: GenerationConfig) -> CompiledStep | None:
    """The compiled step of the model, made now if there is none with this config; `None` if none is asked for."""
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
