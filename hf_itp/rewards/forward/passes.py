"""
One forward pass of a reward model, so that its reward can be trusted: the right token is pooled, the head runs in
float32, dropout is off, and the caller's model is not changed.

Knows nothing of text.
"""

from __future__ import annotations

import copy
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_itp.errors import RewardModelError
from hf_itp.rewards.text.encoding import TokenSequence

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def devices(model: nn.Module) -> frozenset[torch.device]:
    """Return the devices of the model's weights."""
    return frozenset(parameter.device for parameter in model.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """
    Put `model` into eval mode without gradients and autocast, and restore the mode of each module afterwards.

    Only one thread at a time may do so per model: a second one would see the mode change.
    """
    with _locks_guard:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with ExitStack() as stack:
                # Not `inference_mode`: buffers that the model updates meanwhile must stay usable in training.
                stack.enter_context(torch.no_grad())
                for kind in {"cpu", *(device.type for device in devices(model))} - {"meta"}:
                    stack.enter_context(torch.autocast(kind, enabled=False))
                yield
        finally:
            for module in training:
                module.training = True


def pools_last_token(model: PreTrainedModel) -> bool:
    """
    Return whether the model is one of transformers' decoders with a `score` head on the last token.

    For them [`logits`] pools by attention mask. Their own forward pools the last token other than the pad id, which
    skips a final end token where pad equals eos, and raises on batches where there is no pad id.
    """
    own_forward = type(model).forward.__module__.startswith("transformers.")
    return own_forward and isinstance(getattr(model, "score", None), nn.Module) and not model.config.is_encoder_decoder


def logits(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """
    Return the head's outputs for a batch of sequences, padded on the right.

    Returns:
        `torch.Tensor` of shape `(len(sequences), num_labels)`, float32, on the CPU.
    """
    check_ids(model, sequences)
    inputs = _padded(model, sequences)
    if pools_last_token(model):
        outputs = _last_token_logits(model, **inputs)
    else:
        outputs = _own_logits(model, **inputs)
    if outputs.shape != (len(sequences), model.config.num_labels):
        raise RewardModelError(
            f"`{type(model).__name__}` must return logits of shape {(len(sequences), model.config.num_labels)}, got "
            f"{tuple(outputs.shape)}. Wrap the model in a RewardFunction of your own that reads its output."
        )
    return outputs.float().cpu()


def step_logits(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """
    Return a token classifier's outputs at the positions `reads` of each sequence, its head in float32.

    Returns:
        `list[torch.Tensor]`: One `(len(reads), num_labels)` per sequence, float32, on the CPU.
    """
    check_ids(model, sequences)
    outputs = _own_logits(model, **_padded(model, sequences)).float().cpu()
    return [outputs[row, list(sequence.reads)] for row, sequence in enumerate(sequences)]


def answer_logits(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], answers: Sequence[int]
) -> list[torch.Tensor]:
    """
    Return a language model's logits of a few tokens at the positions `reads` of each sequence, in float32. Logits of
    other tokens are not computed.

    Returns:
        `list[torch.Tensor]`: One `(len(reads), len(answers))` per sequence, float32, on the CPU.
    """
    check_ids(model, sequences)
    head: Any = model.get_output_embeddings()
    name = next((name for name, child in model._modules.items() if child is head), None)
    if name is None or type(head) is not nn.Linear or _is_quantized(head):
        raise RewardModelError(
            f"`{type(model).__name__}` must have a plain linear output embedding of its own to be read at single "
            "tokens, got none. Wrap it in a callable f(prompts, completions, **kwargs)."
        )
    # A shallow copy that shares the body and has a head of these tokens only: caps and scales of logits still apply.
    view = copy.copy(model)
    view._modules = {**model._modules, name: _Rows(head, answers)}
    outputs = type(model).forward(view, **_padded(model, sequences), use_cache=False, return_dict=True).logits
    outputs = outputs.float().cpu()
    return [outputs[row, list(sequence.reads)] for row, sequence in enumerate(sequences)]


def _last_token_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: torch.Tensor
) -> torch.Tensor:
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True, **inputs
    ).last_hidden_state  # (b, L, D)
    last = (attention_mask.sum(dim=-1) - 1).to(hidden.device)
    return score_hidden(model, hidden[torch.arange(len(hidden), device=hidden.device), last])


def score_hidden(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a `score` head, in float32, for hidden states `(b, D)` of the last tokens."""
    head = _in_float32(model.get_submodule("score"))
    # A quantised head may have no weights that show its device; then it is the body's.
    weight = next(itertools.chain(head.parameters(), head.buffers()), None)
    device = hidden.device if weight is None else weight.device
    if not _is_quantized(head):
        return head(hidden.to(device, torch.float32))
    hidden = hidden.to(device, weight.dtype if weight is not None and weight.is_floating_point() else torch.float32)
    # Its scale may depend on all rows of a call, so each row is a call.
    return torch.cat([head(row) for row in hidden.split(1)])


def features(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """
    Return the mean of the last hidden states of each sequence, `(len(sequences), D)`, float32, on the CPU.
    """
    check_ids(model, sequences)
    inputs = _padded(model, sequences)
    hidden = model.base_model(**inputs, return_dict=True).last_hidden_state.float()
    mask = inputs["attention_mask"].to(hidden.device)[..., None].float()
    return ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).cpu()


def _own_logits(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    own_class = type(model).forward.__module__.startswith("transformers.")
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    if half and own_class:
        # A shallow copy that shares the encoder and has its own head: the caller's model keeps its dtypes.
        view = copy.copy(model)
        view._modules = {
            name: child if name == model.base_model_prefix or child is None else _in_float32(child)
            for name, child in model._modules.items()
        }
        outputs = type(model).forward(view, **inputs, return_dict=True)
    else:
        outputs = model(**inputs, return_dict=True)
    if not isinstance(getattr(outputs, "logits", None), torch.Tensor):
        raise RewardModelError(
            f"`{type(model).__name__}` must return `logits`, got a {type(outputs).__name__} without them. "
            "Wrap the model in a RewardFunction of your own that reads its output."
        )
    return outputs.logits


class _Rows(nn.Module):
    """A few rows of a linear layer, in float32."""

    def __init__(self, layer: nn.Linear, rows: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach()[list(rows)].float())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach()[list(rows)].float())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        bias: Any = self.bias
        return nn.functional.linear(hidden.to(weight.device, torch.float32), weight, bias)


def _in_float32(head: nn.Module) -> nn.Module:
    """
    Return the head in float32, for inputs of any float type; it shares the caller's weights where they are float32.

    Rewards near 10 are 0.06 apart in bfloat16, so different responses would tie. Weights of another type are converted
    at every pass: only their values tell whether they have changed, and reading them costs as much.
    """
    if _is_quantized(head) and list(head.parameters()):
        return head  # it computes as it was quantised, on inputs of its own type
    if not list(head.parameters()) and not _is_quantized(head):
        return head
    tensors = itertools.chain(head.parameters(), head.buffers())
    # `deepcopy` does not copy what it finds in its memo, so this copies only the modules.
    in_float32 = {id(tensor): tensor.detach().float() if tensor.is_floating_point() else tensor for tensor in tensors}
    head = copy.deepcopy(head, in_float32)
    head.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
    return head


def _is_quantized(head: nn.Module) -> bool:
    """Return whether a module holds packed weights, or tensors that only look like floats."""
    dynamic = any(type(module).__module__.startswith("torch.ao.") for module in head.modules())
    return dynamic or any(type(parameter.data) is not torch.Tensor for parameter in head.parameters())


def _cast_inputs(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def _padded(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    # A decoder would accept any id; RoBERTa and similar models find padding, and so positions, by this one.
    pad_id = model.config.get_text_config().pad_token_id
    vocabulary = _vocabulary_size(model)
    pad_id = pad_id if pad_id is not None and 0 <= pad_id < vocabulary else 0
    length = max(len(sequence.ids) for sequence in sequences)
    shape = (len(sequences), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    type_ids = torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids, dtype=torch.long)
        attention_mask[row, : len(sequence.ids)] = 1
        type_ids[row, : len(sequence.ids)] = torch.tensor(sequence.type_ids, dtype=torch.long)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = type_ids
    device = input_device(model)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def check_ids(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    """Raise `RewardModelError` if the model has no embedding for an id."""
    vocabulary, largest = _vocabulary_size(model), max(max(sequence.ids) for sequence in sequences)
    if largest >= vocabulary:
        raise RewardModelError(
            f"The tokenizer's ids must be below the reward model's vocabulary size ({vocabulary}), got "
            f"{largest}. Pass the `tokenizer` the reward model was trained with."
        )


def _vocabulary_size(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    # Quantised embeddings have no parameters, but they store their number.
    weight = next(embeddings.parameters(), None)
    return len(weight) if weight is not None else int(embeddings.num_embeddings)


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which the model takes its ids."""
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else model
    modules = [embeddings, model]
    tensors = itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
