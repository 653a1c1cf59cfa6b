"""Test which sequences share a forward pass, and what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch

from hf_itp.rewards.forward.scoring import map_batches
from hf_itp.rewards.text.encoding import TokenSequence

LENGTHS = [3, 900, 5, 4000, 7, 20, 8000, 1]
SEQUENCES = [TokenSequence((1,) * n, (0,) * n, (True,) * n) for n in LENGTHS]


def recording(batches, room=None):
    def lengths(batch):
        batches.append([len(sequence.ids) for sequence in batch])
        if room is not None and len(batch) > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return torch.tensor([float(len(sequence.ids)) for sequence in batch])

    return lengths


@pytest.mark.parametrize("batch_size", ["auto", 1, 3, 100])
def test_results_come_back_in_order(batch_size):
    assert map_batches(recording([]), SEQUENCES, batch_size).tolist() == LENGTHS


def test_auto_bounds_the_padded_tokens_longest_first():
    batches = []
    map_batches(recording(batches), SEQUENCES, "auto")
    assert batches == [[8000, 4000], [900, 20, 7, 5, 3, 1]]


def test_sequence_longer_than_the_bound_goes_alone():
    batches = []
    map_batches(recording(batches), [TokenSequence((1,) * 20_000, (0,), (True,)), *SEQUENCES[:2]], "auto")
    assert batches == [[20_000], [900, 3]]


def test_out_of_memory_halves_until_it_fits_and_stays_there():
    batches = []
    assert map_batches(recording(batches, room=2), SEQUENCES, 8).tolist() == LENGTHS
    assert [len(batch) for batch in batches] == [8, 4, 2, 2, 2, 2]


def test_single_sequence_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="out of memory"):
        map_batches(recording([], room=0), SEQUENCES, 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    calls = []

    def broken(batch):
        calls.append(len(batch))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        map_batches(broken, SEQUENCES, 4)
    assert calls == [4]


def test_batch_ends_before_padding_costs_more_than_a_pass():
    batches = []
    assert map_batches(recording(batches), SEQUENCES, "auto", max_padding=64).tolist() == LENGTHS
    assert batches == [[8000], [4000], [900], [20, 7, 5, 3, 1]]


def test_tokens_of_a_batch_can_be_bounded():
    batches = []
    map_batches(recording(batches), SEQUENCES[:3], "auto", max_tokens=1000)
    assert batches == [[900], [5, 3]]
