"""
Test early rejection: the responses of the full draw, some of them cut short, and what that saves and costs.
"""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import hf_itp
from hf_itp import EarlyRejection
from hf_itp.errors import ArgumentError
from hf_itp.sampling import sampler
from tests.tiny import EOS, left_padded_batch, tiny_model, tiny_tokenizer

LENGTHS = [7, 5, 9]
N, INTERVAL, MAX_NEW_TOKENS = 8, 4, 24


def hashed(ids) -> float:
    """Return a reward that tells nothing about the reward of a longer response."""
    return int.from_bytes(hashlib.sha256(repr(list(ids)).encode()).digest()[:3], "big") / 2**24


def by_all_tokens(prompts, completions, completion_ids, **kwargs):
    return [hashed(ids) for ids in completion_ids]


def by_first_tokens(prompts, completions, completion_ids, **kwargs):
    return [hashed(ids[:INTERVAL]) for ids in completion_ids]


def run(early_rejection=None, reward=by_all_tokens, rows=(0, 1, 2), model="llama", lengths=LENGTHS, **arguments):
    batch = {name: values[list(rows)] for name, values in left_padded_batch(lengths).items()}
    policy = tiny_model(model) if isinstance(model, str) else model
    return policy.generate(
        **batch,
        strategy="best_of_n",
        reward_model=reward,
        prompts=[f"prompt {row}" for row in rows],
        early_rejection=early_rejection,
        tokenizer=tiny_tokenizer(),
        return_dict_in_generate=True,
        **{"num_candidates": N, "seed": 0, "max_new_tokens": MAX_NEW_TOKENS, **arguments},
    )


def tokens(pools):
    return [[response.tolist() for response in pool] for pool in pools]


def expected_pool(full, share, interval, keep=1):
    """Apply the rule step by step to one prompt's complete responses; return how much of each is drawn."""
    racing, drawn = set(range(len(full))), [len(response) for response in full]
    for length in range(interval, max(drawn), interval):
        growing = [i for i in racing if len(full[i]) > length]
        if not growing:
            continue
        worst_first = sorted(racing, key=lambda i: (hashed(full[i][:length]), -i))
        for i in worst_first[: max(0, min(math.floor(share * len(racing) + 1e-9), len(racing) - keep))]:
            racing.remove(i)
            if i in growing:
                drawn[i] = length
    return [response[:length] for response, length in zip(full, drawn, strict=True)]


@pytest.mark.parametrize("architecture", ["llama", "bloom", "recurrent_gemma"], ids=["shared", "expanded", "repeated"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_pool_is_the_full_draws_cut_where_the_rule_says(architecture, share):
    full = run(model=architecture)
    output = run(EarlyRejection(share, INTERVAL), model=architecture)
    assert output.diagnostics["path"] == full.diagnostics["path"]
    pools = tokens(full.candidates)
    assert tokens(output.candidates) == [expected_pool(pool, share, INTERVAL) for pool in pools]
    assert any(len(response) < INTERVAL for pool in pools for response in pool), "no row ends before a review"
    for row, pool in enumerate(pools):
        drawn = tokens(output.candidates)[row]
        cut = [response != whole for response, whole in zip(drawn, pool, strict=True)]
        assert output.diagnostics["early_rejection"]["rejected"][row].tolist() == cut and any(cut)
        assert output.candidate_rewards[row].tolist() == [hashed(response) for response in drawn]
        complete = [hashed(response) for response, is_cut in zip(drawn, cut, strict=True) if not is_cut]
        assert output.rewards[row].item() == max(complete)
        assert not cut[output.selected[row, 0]]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_winner_is_best_of_ns_where_the_reward_is_settled_by_the_first_review(share):
    full, output = run(reward=by_first_tokens), run(EarlyRejection(share, INTERVAL), reward=by_first_tokens)
    assert output.diagnostics["early_rejection"]["rejected"].any(dim=-1).all()
    assert output.selected.equal(full.selected) and output.sequences.equal(full.sequences)
    assert output.rewards.equal(full.rewards)


def test_share_of_zero_is_best_of_n():
    full, output = run(num_return_sequences=2), run(0.0, num_return_sequences=2)
    assert output.sequences.equal(full.sequences) and output.candidate_rewards.equal(full.candidate_rewards)
    assert output.probabilities.equal(full.probabilities)
    assert tokens(output.candidates) == tokens(full.candidates)
    assert not output.diagnostics["early_rejection"]["tokens_saved"].any()


@pytest.mark.parametrize(
    ("share", "lengths"),
    [
        # 8 in the race, 4 after the first review, 2, 1; from then on nobody leaves.
        (0.5, [4, 4, 4, 4, 8, 8, 12, 24]),
        # 8, 6, 5, 4, 3, 3.
        (0.25, [4, 4, 8, 12, 16, 24, 24, 24]),
    ],
)
def test_as_many_are_drawn_to_each_length_as_counted_by_hand(share, lengths):
    output = run(EarlyRejection(share, INTERVAL), eos_token_id=None)
    assert output.diagnostics["num_tokens"].sort(dim=-1).values.tolist() == [lengths] * 3
    found = output.diagnostics["early_rejection"]
    # All responses are equally long here, so the estimate is exact.
    assert found["tokens_saved"].tolist() == [8 * MAX_NEW_TOKENS - sum(lengths)] * 3
    torch.testing.assert_close(found["share_saved"], 1 - torch.full((3,), sum(lengths) / (8 * MAX_NEW_TOKENS)))


def test_no_fewer_are_completed_than_returned():
    output = run(EarlyRejection(0.9, INTERVAL), eos_token_id=None, num_return_sequences=3)
    assert output.diagnostics["num_tokens"].sort(dim=-1).values.tolist() == [[4] * 5 + [24] * 3] * 3
    assert all(len(output.candidates[row][index]) == 24 for row in range(3) for index in output.selected[row])
    ordered = output.rewards.sort(dim=-1, descending=True).values
    assert output.rewards.equal(ordered)


def test_complete_response_may_win_after_it_has_left_the_race():
    """Growing responses promise much and end worse than the modest response that ended early."""

    def promises(prompts, completions, completion_ids, **kwargs):
        def reward(ids):
            if ids[-1] == EOS and len(ids) <= INTERVAL:
                return 0.5
            return 0.0 if ids[-1] == EOS or len(ids) == MAX_NEW_TOKENS else 1.0

        return [reward(ids) for ids in completion_ids]

    output = run(EarlyRejection(0.5, INTERVAL), reward=promises)
    early = [any(len(response) <= INTERVAL and response[-1] == EOS for response in pool) for pool in output.candidates]
    assert any(early)
    assert [reward == 0.5 for reward in output.rewards[:, 0].tolist()] == early


def test_law_gives_the_cut_ones_nothing():
    output = run(EarlyRejection(0.5, INTERVAL))
    cut = output.diagnostics["early_rejection"]["rejected"]
    assert output.probabilities[cut].eq(0).all() and output.probabilities.sum(dim=-1).eq(1).all()
    assert output.diagnostics["effective_sample_size"].eq(1).all()


def test_seed_decides_and_the_batch_does_not():
    settings = EarlyRejection(0.5, INTERVAL)
    together = run(settings)
    for other in (run(settings), run(settings, batch_size=N), run(settings, batch_size=2 * N + 3)):
        assert tokens(other.candidates) == tokens(together.candidates)
        assert other.sequences.equal(together.sequences)
    for row in range(3):
        assert tokens(run(settings, rows=[row]).candidates) == [tokens(together.candidates)[row]]
    assert tokens(run(settings, seed=1).candidates) != tokens(together.candidates)


def test_batch_begun_again_for_want_of_memory_is_judged_again(monkeypatch):
    expected = run(EarlyRejection(0.5, INTERVAL))
    rows, original = [], sampler.decode_rows

    def short_of_memory(*arguments, review, **settings):
        shown_to = review
        rows.append(len(arguments[4]))
        if len(rows) == 1:
            looks = []

            def reject(*shown):
                looks.append(shown_to.reject(*shown))
                if len(looks) == 2:
                    raise MemoryError
                return looks[-1]

            review = sampler.Review(shown_to.interval, reject)
        return original(*arguments, review=review, **settings)

    monkeypatch.setattr(sampler, "decode_rows", short_of_memory)
    output = run(EarlyRejection(0.5, INTERVAL))
    assert rows == [3 * N, N, N, N]
    assert tokens(output.candidates) == tokens(expected.candidates)
    assert output.candidate_rewards.equal(expected.candidate_rewards)


def test_audit_returns_the_same_and_says_what_was_saved_and_lost():
    full, plain = run(), run(EarlyRejection(0.5, INTERVAL))
    audited = run(EarlyRejection(0.5, INTERVAL, audit=1.0))
    assert tokens(audited.candidates) == tokens(plain.candidates)
    assert audited.sequences.equal(plain.sequences) and audited.candidate_rewards.equal(plain.candidate_rewards)
    found = audited.diagnostics["early_rejection"]
    assert found["audited"].all() and "audited" not in plain.diagnostics["early_rejection"]
    spared = full.diagnostics["num_tokens"] - plain.diagnostics["num_tokens"]
    assert found["tokens_saved"].equal(spared.sum(dim=-1))
    expected = spared.sum(dim=-1) / full.diagnostics["num_tokens"].sum(dim=-1)
    torch.testing.assert_close(found["share_saved"], expected)
    assert found["reward_lost"].equal((full.rewards - plain.rewards)[:, 0])
    assert found["winner_changed"].equal(full.selected[:, 0] != plain.selected[:, 0])


def test_share_of_the_prompts_is_audited_and_which_ones_does_not_depend_on_the_batch():
    lengths = [7] * 40
    settings = {"lengths": lengths, "rows": range(40), "num_candidates": 4}
    plain = run(EarlyRejection(0.5, INTERVAL), **settings)
    part = run(EarlyRejection(0.5, INTERVAL, audit=0.5), **settings)
    whole = run(EarlyRejection(0.5, INTERVAL, audit=1.0), **settings)
    assert tokens(part.candidates) == tokens(plain.candidates) and part.sequences.equal(plain.sequences)
    found, full = part.diagnostics["early_rejection"], whole.diagnostics["early_rejection"]
    audited = found["audited"]
    # 40 fair coins fall outside of this range once in 100,000 seeds, and the seed is fixed.
    assert 7 < audited.sum() < 33
    for name in ("tokens_saved", "reward_lost", "winner_changed"):
        assert found[name][audited].equal(full[name][audited]), name
    assert found["reward_lost"][~audited].isnan().all() and not found["winner_changed"][~audited].any()
    estimated = plain.diagnostics["early_rejection"]["tokens_saved"]
    assert found["tokens_saved"][~audited].equal(estimated[~audited])
    alone = run(EarlyRejection(0.5, INTERVAL, audit=0.5), **{**settings, "rows": range(0, 40, 3)})
    assert alone.diagnostics["early_rejection"]["audited"].equal(audited[::3])


def test_audit_notices_a_changed_winner():
    """The reward of a complete response is the opposite of what its beginning promised."""

    def deceptive(prompts, completions, completion_ids, **kwargs):
        return [hashed(ids[:INTERVAL]) * (-1 if len(ids) == MAX_NEW_TOKENS else 1) for ids in completion_ids]

    output = run(EarlyRejection(0.5, INTERVAL, audit=1.0), reward=deceptive, eos_token_id=None)
    full = run(reward=deceptive, eos_token_id=None)
    found = output.diagnostics["early_rejection"]
    assert found["winner_changed"].all() and (found["reward_lost"] > 0).all()
    assert found["reward_lost"].equal((full.rewards - output.rewards)[:, 0])


def test_rowwise_processor_goes_along_and_one_that_ties_rows_is_refused():
    pools = tokens(run(repetition_penalty=1.3).candidates)
    output = run(EarlyRejection(0.5, INTERVAL), repetition_penalty=1.3)
    assert tokens(output.candidates) == [expected_pool(pool, 0.5, INTERVAL) for pool in pools]

    class Own(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores

    with pytest.raises(ArgumentError, match=r"got `Own`. Set `rowwise = True` on its class"):
        run(0.5, logits_processor=LogitsProcessorList([Own()]))


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"early_rejection": 1.0}, "Pass e.g. early_rejection=0.5"),
        ({"early_rejection": -0.1}, "Pass e.g. early_rejection=0.5"),
        ({"early_rejection": float("nan")}, "Pass e.g. early_rejection=0.5"),
        ({"early_rejection": True}, "Pass e.g. early_rejection=0.5"),
        ({"early_rejection": "half"}, "Pass e.g. early_rejection=0.5"),
        ({"early_rejection": 0.5, "batch_size": N - 1}, "Leave `batch_size` out, or draw fewer candidates"),
        ({"early_rejection": 0.5, "shard": "candidates"}, "Leave one of them out"),
        ({"early_rejection": 0.5, "strategy": "pessimism", "beta": 0.1}, "Pass strategy='best_of_n'"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, remedy):
    batch = left_padded_batch(LENGTHS)
    settings = {"strategy": "best_of_n", "num_candidates": N, "max_new_tokens": 4, "tokenizer": tiny_tokenizer()}
    with pytest.raises(ArgumentError, match=remedy):
        tiny_model("llama").generate(**batch, reward_model=by_all_tokens, **{**settings, **arguments})


def test_interval_below_one_and_audit_above_one_are_refused():
    with pytest.raises(ArgumentError, match=r"Pass e.g. interval=32"):
        hf_itp.EarlyRejection(0.5, interval=0)
    with pytest.raises(ArgumentError, match=r"Pass e.g. audit=0.1"):
        hf_itp.EarlyRejection(0.5, audit=1.5)
