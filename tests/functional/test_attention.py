"""Causal attention with a log-sum-exp, against a masked softmax in float64."""

from __future__ import annotations

import pytest
import torch

from hf_itp.functional import attention
from hf_itp.functional.attention import attend, attend_causally


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
