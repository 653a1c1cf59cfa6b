"""Test causal attention with a log-sum-exp against a masked softmax in float64."""

from __future__ import annotations

import pytest
import torch

from hf_itp.functional.kernels import attention
from hf_itp.functional.kernels.attention import attend, attend_causally, merge_attention

pytestmark = pytest.mark.oldest


def drawn(queries, keys, heads=6, key_heads=2, widths=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, heads, queries, widths[0], generator=generator),
        torch.randn(2, key_heads, keys, widths[0], generator=generator),
        torch.randn(2, key_heads, keys, widths[1], generator=generator),
    )


def reference(query, key, value, softcap, visible):
    repeats = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(repeats, 1), value.double().repeat_interleave(repeats, 1)
    logits = query.double() @ key.transpose(-1, -2) * 0.3
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    logits = logits.masked_fill(~visible, -torch.inf)
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def assert_exact(actual, expected):
    for part, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(part.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("widths", [(8, 8), (8, 4)])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 100])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (5, 12), (1, 12), (1, 1)])
def test_query_sees_the_keys_up_to_its_own(softcap, widths, window, queries, keys, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 4)
    tensors = drawn(queries, keys, widths=widths)
    position, column = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    visible = (column <= position) & (column > position - (window or keys))
    actual = attend_causally(*tensors, 0.3, softcap, window)
    assert_exact(actual, reference(*tensors, softcap, visible))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("widths", [(8, 8), (8, 4)])
def test_heads_that_share_a_key_head_repeat_no_key(softcap, widths, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 4)
    tensors = drawn(9, 7, widths=widths)
    assert_exact(attend(*tensors, 0.3, softcap), reference(*tensors, softcap, torch.ones(9, 7, dtype=torch.bool)))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("widths", [(8, 8), (8, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_parts_are_those_of_the_whole(softcap, widths, causal):
    """Parts attended separately and merged, with a sink, agree with autograd through one softmax in float64."""
    query, key, value = drawn(6, 6, widths=widths)
    prefix_key, prefix_value = drawn(1, 5, widths=widths)[1:]
    sink = torch.linspace(-1, 1, 6, dtype=torch.float32).view(1, 6, 1)
    weight = torch.randn(2, 6, 6, widths[1], generator=torch.Generator().manual_seed(1))
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, prefix_key, prefix_value, sink)]

    own = attend_causally(query, key, value, 0.3, softcap) if causal else attend(query, key, value, 0.3, softcap)
    shared = attend(query, prefix_key, prefix_value, 0.3, softcap)
    merged = merge_attention([own[0], shared[0]], [own[1], shared[1]], sink)
    found = torch.autograd.grad((merged * weight).sum(), inputs)

    keys, values = torch.cat([prefix_key, key], 2), torch.cat([prefix_value, value], 2)
    visible = torch.cat([torch.ones(6, 5), torch.ones(6, 6).tril() if causal else torch.ones(6, 6)], 1).bool()
    output, lse = reference(query, keys, values, softcap, visible)
    expected = output * torch.sigmoid(lse - sink.double())[..., None]
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-5)
    for ours, exact in zip(found, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_part_without_keys_is_nought():
    output, lse = drawn(3, 3)[0].requires_grad_(), torch.zeros(2, 6, 3, requires_grad=True)
    nothing = torch.full((2, 6, 3), -torch.inf)
    merged = merge_attention([output, torch.zeros_like(output)], [lse, nothing])
    of_output, of_lse = torch.autograd.grad(merged.sum(), [output, lse])
    assert of_output.eq(1).all() and of_lse.eq(0).all()
