"""
Test packed linear layers: the same numbers, never from outdated weights, and nothing packed that cannot be.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_itp.models import packed_linear
from hf_itp.models.packed_linear import PackedLinear, packed_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN, so nothing is packed"
)


def linear(width=24, out=40, bias=True, seed=0):
    layer = nn.utils.skip_init(nn.Linear, width, out, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def packed(layer):
    [replacement] = packed_linears(nn.Sequential(layer)).values()
    return replacement


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 1, 24), (200, 24), (2, 3, 4, 24)])
@torch.no_grad()
def test_output_is_that_of_the_layer(shape, bias):
    layer, inputs = linear(bias=bias), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(layer)(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


def test_weights_are_packed_once():
    layer = linear()
    first, second = packed(layer), packed(layer)
    assert first._packed_weight is second._packed_weight


@pytest.mark.parametrize("write", ["in place", "through data", "swapped rows", "one entry"])
@torch.no_grad()
def test_changed_weights_are_packed_anew(write):
    """An adapter merges through `.data`, which leaves no trace in the tensor's version."""
    layer, inputs = linear(), torch.eye(24)
    packed(layer)
    if write == "in place":
        layer.weight.mul_(2)
    elif write == "through data":
        layer.weight.data += 1.0
    elif write == "swapped rows":
        layer.weight.data = layer.weight.data.flip(0)
    else:
        layer.weight.data[3, 5] += 1e-3
    torch.testing.assert_close(packed(layer)(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.uses_global_rng
def test_layers_that_compute_otherwise_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    hooked = linear()
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    model = nn.Sequential(Doubled(3, 3), hooked, linear().to(torch.bfloat16), nn.LayerNorm(3), linear().to("meta"))
    assert packed_linears(model) == {}


def test_scarce_memory_is_left_to_others(monkeypatch):
    monkeypatch.setattr(packed_linear, "_MEMORY_SHARE", 0.0)
    assert packed_linears(nn.Sequential(linear())) == {}


def test_replacement_holds_the_layers_own_parameters():
    layer = linear()
    replacement = packed(layer)
    assert isinstance(replacement, PackedLinear)
    assert replacement.weight is layer.weight and replacement.bias is layer.bias


def test_nothing_is_packed_under_autocast():
    """The packed kernel does not take autocast's type."""
    model = nn.Sequential(linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_linears(model) == {}
    assert len(packed_linears(model)) == 1
