"""
Test autocast and another default dtype: the sampler computes in the model's precision.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from hf_itp.distributed.processes import Processes
from hf_itp.distributed.sharding import ShardedSource, Sharding
from hf_itp.errors import ItpWarning
from hf_itp.functional.kernels.attention import attend, attend_causally
from hf_itp.models.packed_linear import packed_linears
from hf_itp.sampling import decoders
from hf_itp.sampling.call import DecodingCall
from tests.sampling.drawing import draw, prepared
from tests.sampling.test_architectures import SHARED
from tests.tiny import left_padded_batch, tiny_model


@pytest.fixture
def bfloat16_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("architecture", SHARED)
@torch.no_grad()
def test_step_under_autocast_is_the_models_own(architecture):
    """Compare with the model's pass over the whole row, also under autocast: within a few roundings of bfloat16."""
    model, batch = tiny_model(architecture), left_padded_batch([9])
    draw(model, batch, 1)  # packs its layers, and gives a verdict that holds only outside of autocast
    ids = torch.cat([batch["input_ids"], torch.tensor([[7]])], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoder = decoders.make_decoder(prepared(model, batch))
        assert decoder.path == "shared", decoder.path_reason
        first = decoder.start(torch.tensor([0, 0]))
        second = decoder.advance(ids.repeat(2, 1))
        expected = model(input_ids=ids, use_cache=False).logits.float()
    full = model(input_ids=ids, use_cache=False).logits
    rounding = (expected - full).abs().max()
    assert rounding > 0, "autocast must matter here"
    for ours, position in ((first, -2), (second, -1)):
        assert (ours - expected[:, position]).abs().max() <= 4 * rounding


@torch.no_grad()
def test_packed_layer_under_autocast_is_the_layer():
    """A view made before autocast began may be used inside."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(24, 40)
        inputs = torch.randn(7, 24)
    replacements = packed_linears(nn.Sequential(layer))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(inputs)
        assert packed_linears(nn.Sequential(layer)) == {}
        for replacement in replacements.values():
            output = replacement(inputs)
            assert output.dtype == torch.bfloat16 and output.equal(expected)


@pytest.mark.parametrize("kernel", [attend, attend_causally])
def test_attention_under_autocast_takes_queries_and_keys_of_another_type(kernel):
    """Rotary positions leave queries and keys in float32, while values are in half precision."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(3))
    mask = torch.ones(6, 6).tril().bool() if kernel is attend_causally else None
    exact = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, lse = kernel(query, key, value.bfloat16(), 0.3)
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom", "mamba"])
def test_default_dtype_is_no_part_of_the_draw(architecture, bfloat16_by_default):
    model, batch = tiny_model(architecture), left_padded_batch([7, 5])
    under_another = draw(model, batch, 4)
    torch.set_default_dtype(torch.float32)
    assert draw(model, batch, 4) == under_another


def test_rewards_keep_their_digits_on_the_way_through_sharding(bfloat16_by_default):
    rewards = torch.tensor([100.0, 100.1, 100.2, 100.3], dtype=torch.float32)

    class Source:
        seconds: ClassVar = {}

        def draw(self, pairs, review=None):
            return list(pairs)

        def score(self, pairs, responses):
            return rewards

    with pytest.warns(ItpWarning, match="there is one process"):
        call = DecodingCall.of(None, torch.zeros(1, 1, dtype=torch.long), [], [], None)
        sharding = Sharding(Processes(), "candidates", call)
    _, collected = ShardedSource(Source(), sharding).collect([(0, index) for index in range(4)])
    assert collected.dtype == torch.float32 and collected.equal(rewards)
