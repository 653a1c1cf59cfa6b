"""
Test that each candidate has a stream of its own, the same in every process and on every day.
"""

from __future__ import annotations

import pytest
import torch

from hf_itp.sampling.streams import candidate_key, fresh_seed, prompt_keys, selection_generator


def test_streams_stay_the_same_from_release_to_release():
    """Values are pinned: a saved pool, a seed in a paper or a resumed run would otherwise change silently."""
    [key] = prompt_keys(0, [[1, 5, 6]])
    assert key.hex() == "671f2c8b2e3224ca713a43e4eabc97ad"
    assert [candidate_key(key, index) for index in (0, 1)] == [-3950094441222074762, -694265050583826125]


def test_prompt_seed_repeat_and_candidate_each_change_the_stream():
    base = prompt_keys(0, [[1, 5, 6]])[0]
    others = [
        prompt_keys(1, [[1, 5, 6]])[0],
        prompt_keys(0, [[1, 5, 7]])[0],
        prompt_keys(0, [[1, 5, 6], [1, 5, 6]])[1],
        prompt_keys(0, ["1,5,6"])[0],
    ]
    keys = {candidate_key(prompt, candidate) for prompt in [base, *others] for candidate in range(100)}
    assert len(keys) == 500


def test_company_does_not_change_the_stream():
    together = prompt_keys(0, [[4], [1, 5, 6], [7, 8]])
    assert together[1] == prompt_keys(0, [[1, 5, 6]])[0]
    assert prompt_keys(0, [[7, 8], [1, 5, 6], [4]]) == together[::-1]


@pytest.mark.parametrize(("left", "right"), [([1, 23], [12, 3]), ([1], [1, 0]), ([], [0])])
def test_prompts_that_read_alike_are_told_apart(left, right):
    assert prompt_keys(0, [left]) != prompt_keys(0, [right])


def test_keys_fill_64_bits(seed=0):
    keys = torch.tensor([candidate_key(prompt_keys(2000 * seed + each, [[1]])[0], 0) for each in range(2000)])
    for bit in range(64):
        # 2,000 fair coins: 6 standard deviations are 134, missed by one of 64 bits with odds of 1.3e-7.
        assert abs(int(((keys >> bit) & 1).sum()) - 1000) < 134


def test_selection_has_a_stream_of_its_own():
    [key] = prompt_keys(0, [[1]])
    numbers = torch.rand(4, generator=selection_generator(key))
    assert torch.rand(4, generator=selection_generator(key)).equal(numbers)
    assert not torch.rand(4, generator=selection_generator(prompt_keys(1, [[1]])[0])).equal(numbers)


@pytest.mark.uses_global_rng
def test_fresh_seed_follows_torchs_own():
    torch.manual_seed(3)
    seeds = [fresh_seed(), fresh_seed()]
    torch.manual_seed(3)
    assert [fresh_seed(), fresh_seed()] == seeds and seeds[0] != seeds[1] and min(seeds) >= 0
