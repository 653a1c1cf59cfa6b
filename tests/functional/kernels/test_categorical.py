"""
Test draws from a softmax: the exact law for vocabularies and tails of every size, whatever the other rows are.
"""

from __future__ import annotations

import pytest
import torch

from hf_itp.functional.kernels import categorical
from hf_itp.functional.kernels.categorical import sample_categorical
from tests.worlds.odds import assert_follows

NUM_DRAWS = 200_000
LAWS = {
    "flat": torch.zeros(6),
    "one_token": torch.tensor([0.0, -torch.inf, -torch.inf]),
    "filtered": torch.tensor([1.0, -torch.inf, 0.3, -torch.inf, -1.0]),
    # Each of 20,000 tokens of the tail is 10.5 nats behind the first one, and together they weigh half as much.
    "heavy_tail": torch.cat([torch.zeros(1), torch.full((20_000,), -10.5)]),
    "far_tail": torch.cat([torch.tensor([0.0, -0.5]), torch.linspace(-10.1, -14.0, 3000)]),
    "large_offset": torch.tensor([1e4, 1e4 + 1.0, 1e4 - 2.0]),
}


def grouped(indices, logits):
    """Put the tail into a few groups, since most of its tokens are never drawn."""
    head = int((logits >= logits.max() - 10).sum())
    return [index if index < head else head + index % 4 for index in indices]


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_softmax(name, seed=2):
    logits = LAWS[name]
    if len(logits) < 100:
        draws = sample_categorical(logits.expand(NUM_DRAWS, -1), torch.arange(NUM_DRAWS), step=seed)
        law = dict(enumerate(logits.double().softmax(-1).tolist()))
        if name == "one_token":
            assert draws.eq(0).all()
        else:
            assert_follows(draws.tolist(), law)
        return
    draws = torch.cat(
        [
            sample_categorical(logits.expand(500, -1), torch.arange(start, start + 500), seed)
            for start in range(0, 20_000, 500)
        ]
    )
    law = {}
    for index, probability in enumerate(logits.double().softmax(-1).tolist()):
        [group] = grouped([index], logits)
        law[group] = law.get(group, 0.0) + probability
    assert_follows(grouped(draws.tolist(), logits), law)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_law_does_not_depend_on_the_blocks(block, monkeypatch, seed=0):
    """Try blocks of one entry, blocks that do not divide the vocabulary, and a block with nothing to draw."""
    monkeypatch.setattr(categorical, "_BLOCK", block)
    logits = torch.tensor([0.0, -0.4, -torch.inf, -torch.inf, -1.3, -2.0, -2.0])
    draws = sample_categorical(logits.expand(NUM_DRAWS, -1), torch.arange(NUM_DRAWS), step=seed)
    assert_follows(draws.tolist(), dict(enumerate(logits.double().softmax(-1).tolist())))


def test_row_draws_the_same_in_any_company():
    generator = torch.Generator().manual_seed(0)
    logits, keys = torch.randn(50, 300, generator=generator), torch.arange(50)
    together = sample_categorical(logits, keys, step=5)
    order = torch.randperm(50, generator=generator)
    assert sample_categorical(logits[order], keys[order], step=5).equal(together[order])
    assert sample_categorical(logits[7:8], keys[7:8], step=5).equal(together[7:8])


def test_noise_in_the_last_bits_moves_no_draw(seed=0):
    """
    This lets different ways of computing logits agree on tokens. Each of 100,000 draws is moved with a chance near
    1e-6. Even at 3e-6 more than five of them are moved with odds below 1e-6 (Poisson with mean 0.3).
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2000, 50, generator=generator)
    noisy = logits * (1 + 1e-7 * torch.randn(logits.shape, generator=generator))
    keys = torch.arange(2000)
    moved = sum(
        int((sample_categorical(logits, keys, s) != sample_categorical(noisy, keys, s)).sum()) for s in range(50)
    )
    assert moved <= 5


def test_inputs_stay_as_they_were():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    sample_categorical(logits, torch.arange(3), step=0)
    assert logits.equal(before)
