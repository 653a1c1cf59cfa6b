"""Test which sequences are worth running after a common prefix."""

from __future__ import annotations

import random

from hf_itp.rewards.forward.scoring import shared_prefixes
from hf_itp.rewards.text.encoding import TokenSequence


def sequence(ids):
    return TokenSequence(tuple(ids), (0,) * len(ids), (True,) * len(ids))


def groups_of(*texts, min_saved=0):
    return shared_prefixes([sequence(text) for text in texts], min_saved)


def test_each_prompt_is_a_group_of_its_own_behind_one_system_message():
    system, first, second = "s" * 50, "a" * 100, "b" * 80
    texts = [system + prompt + response for prompt in (first, second) for response in "xyz"]
    assert groups_of(*texts) == [(150, (0, 1, 2)), (130, (3, 4, 5))]


def test_prompts_too_few_to_save_more_alone_share_what_they_begin_with():
    texts = ["s" * 50 + tail for tail in ("ax", "ay", "b", "c", "d")]
    assert groups_of(*texts) == [(50, (0, 1, 2, 3, 4))]


def test_rows_stand_in_any_order():
    assert groups_of("aaax", "bbbx", "aaay", "c", "bbby") == [(3, (0, 2)), (3, (1, 4))]


def test_every_member_keeps_a_token_of_its_own():
    assert groups_of("aaaa", "aaaab", "aaaac") == [(3, (0, 1, 2))]
    assert groups_of("aaaa", "aaaa") == [(3, (0, 1))]
    assert groups_of("a", "ab", "ac") == [(1, (1, 2))]


def test_group_has_to_save_more_than_asked():
    assert groups_of("aaaax", "aaaay", min_saved=3) == [(4, (0, 1))]
    assert groups_of("aaaax", "aaaay", min_saved=4) == []
    assert groups_of("aaaax", "aaaay", "aaaaz", min_saved=4) == [(4, (0, 1, 2))]
    assert groups_of("x") == []
    assert groups_of("x", "y") == []


def test_response_that_grows_token_by_token():
    """A thousand nested prefixes do not exceed the recursion limit."""
    groups = groups_of(*("a" * length for length in range(1, 2000)))
    assert len(groups) >= 1
    assert all(group.length < min(group.members) + 1 for group in groups)


def test_groups_are_disjoint_alike_and_save_tokens():
    """Holds for 500 random sets of short words over two letters."""
    generator = random.Random(0)
    for _ in range(500):
        words = ["".join(generator.choices("ab", k=generator.randint(1, 6))) for _ in range(generator.randint(1, 9))]
        min_saved = generator.randint(0, 3)
        groups = groups_of(*words, min_saved=min_saved)
        members = [member for group in groups for member in group.members]
        assert len(members) == len(set(members))
        for group in groups:
            assert len({words[member][: group.length] for member in group.members}) == 1
            assert group.length < min(len(words[member]) for member in group.members)
            assert (len(group.members) - 1) * group.length > min_saved
