"""
Linear layers with weights packed for batches of tens of rows, for float32 on a CPU.

`nn.Linear` passes its weights to the BLAS unpacked, which takes up to three times as long as the arithmetic. oneDNN
runs at the machine's full rate on weights it has packed once. A packed copy takes as much memory as the weights.
"""

from __future__ import annotations

import threading
import weakref

import psutil
import torch
from torch import nn

# The layout for 64 rows is within 2 % of the best one from 2 rows to 600.
_PACKED_FOR_ROWS = 64
# Largest share of the free memory for packed copies, which only gain speed.
_MEMORY_SHARE = 0.25

_packed: weakref.WeakKeyDictionary[nn.Linear, tuple[torch.Tensor, torch.Tensor]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class PackedLinear(nn.Module):
    """Linear layer on a packed copy of another's weight. Holds the other's parameters, not copies of them."""

    def __init__(self, linear: nn.Linear, packed: torch.Tensor):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._packed_weight = packed

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The operator ignores autocast and takes only float32.
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self._packed_weight, self.bias, "none", [], "")


def packed_linears(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """
    Return a packed replacement for each linear layer of `model` that can be packed.

    Return none if packing is not available, would not pay, or would take more than a quarter of the free memory, and
    none under autocast, which computes in another precision.
    """
    if torch.is_autocast_enabled("cpu"):
        return {}
    layers = [module for module in model.modules() if type(module) is nn.Linear and _can_be_packed(module)]
    missing = sum(layer.weight.numel() * 4 for layer in layers if layer not in _packed)
    if missing > _MEMORY_SHARE * psutil.virtual_memory().available:
        return {}
    return {layer: PackedLinear(layer, _packed_weight(layer)) for layer in layers}


def _can_be_packed(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(weight.data) is torch.Tensor  # no quantised or sharded tensor behind the same interface
        # A hook or a parametrization runs around the layer's own forward.
        and not (linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "parametrizations"))
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _packed_weight(linear: nn.Linear) -> torch.Tensor:
    weight = linear.weight.detach()
    # Reuse an earlier packed copy while the weights are the same. Only their values show that: a write through
    # `.data`, as merging an adapter does, leaves no trace in the tensor's version. Costs one pass over the weights.
    fingerprint = weight @ _probe(weight.shape[1])
    with _lock:
        known = _packed.get(linear)
        if known is not None and torch.equal(known[0], fingerprint):
            return known[1]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        _packed[linear] = (fingerprint, packed)
        return packed


def _probe(width: int) -> torch.Tensor:
    """Return fixed numbers in [-1, 1), without a pattern that a change of the weights could be orthogonal to."""
    return torch.arange(1, width + 1, dtype=torch.float64).mul_(0.6180339887498949).frac_().mul_(2).sub_(1).float()
