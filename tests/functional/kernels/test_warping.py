"""
Test warped logits against references written from the formula, which are themselves checked against transformers.
"""

from __future__ import annotations

import pytest
import torch

from hf_itp.functional.kernels.warping import warp_logits
from tests.worlds.warpers import warper

SETTINGS = [
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_warped_logits_equal_the_reference(settings, with_ties):
    logits = 2 * torch.randn(200, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if with_ties:
        # Ties at the nucleus' edge may be cut anywhere, so there the number kept is compared.
        logits = logits.round()
    warped = warp_logits(logits, **settings)
    expected = torch.stack([warper(**settings)(row) for row in logits])
    if with_ties and "top_p" in settings:
        assert warped.isfinite().sum(-1).equal(expected.isfinite().sum(-1))
    else:
        torch.testing.assert_close(warped, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_nuclei_of_every_size_equal_the_reference(top_p):
    """Sizes range from one token to thousands: some rows need every further look at the vocabulary, some none."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([40.0, 10.0, 4.0, 2.0, 1.0, 0.5, 0.0])[:, None]
    logits = spread * torch.randn(7, 6000, dtype=torch.float64, generator=generator)
    logits[-1] += 1e-6 * torch.arange(6000)
    expected = torch.stack([warper(top_p=top_p)(row) for row in logits])
    sizes = expected.isfinite().sum(-1)
    assert sizes.min() < 64 and sizes.max() > 1000
    torch.testing.assert_close(warp_logits(logits, top_p=top_p), expected, rtol=1e-12, atol=0)
    assert warp_logits(logits[None], top_p=top_p).equal(warp_logits(logits, top_p=top_p)[None])


def test_one_token_always_stays():
    warped = warp_logits(
        torch.randn(50, 20, generator=torch.Generator().manual_seed(0)), top_k=1, top_p=0.0, min_p=1.0
    )
    assert warped.isfinite().sum(-1).eq(1).all()


def test_nothing_asked_changes_nothing():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    assert warp_logits(logits).equal(logits)


def test_inputs_stay_as_they_were():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    warp_logits(logits, temperature=0.5, top_k=3, top_p=0.5, min_p=0.2)
    assert logits.equal(before)
