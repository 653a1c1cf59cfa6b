"""
Test the caller's own processors and criteria: called as plain `generate` calls them, or row by row, or refused.

Expected results are the same responses drawn without the criterion and cut by its rule, and plain `generate`.
"""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import hf_itp
from hf_itp.errors import ArgumentError, ItpWarning
from tests.sampling.drawing import draw
from tests.tiny import EOS, left_padded_batch, tiny_model

pytestmark = pytest.mark.oldest

A = 11
LENGTH, NUM_CANDIDATES = 30, 6
# A nearly uniform law over few tokens, so that the policy sometimes writes A and sometimes ends.
WRITTEN = (A, 12, 13, 14, EOS)
BIAS = {
    "suppress_tokens": [token for token in range(64) if token not in WRITTEN],
    "sequence_bias": [[[EOS], -2e6]],
    "temperature": 1e6,
    "max_new_tokens": LENGTH,
}


class RowFlags(StoppingCriteria):
    """Criterion that ends row i once it has written A twice; its size is set when it is made."""

    def __init__(self, rows):
        self.count = torch.zeros(rows, dtype=torch.long)

    def __call__(self, input_ids, scores, **kwargs):
        self.count += input_ids[:, -1] == A
        return self.count >= 2


class FlagsOnFirstCall(RowFlags):
    """Criterion whose size is set in its first call, and again when the number of rows changes."""

    def __init__(self):
        self.count = None

    def __call__(self, input_ids, scores, **kwargs):
        if self.count is None or len(self.count) != len(input_ids):
            self.count = torch.zeros(len(input_ids), dtype=torch.long)
        return super().__call__(input_ids, scores)


class LockedFlags(FlagsOnFirstCall):
    """Criterion that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class SecondOfOneRow(StoppingCriteria):
    """Criterion written for one row, as most are: it has one count and answers with one bool."""

    def __init__(self):
        self.seen = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += int(input_ids[0, -1] == A)
        return self.seen >= 2


class HarnessTracker(StoppingCriteria):
    """Criterion like lm-evaluation-harness's: a flag per prompt, one bool for all, further rows ignored."""

    def __init__(self, rows):
        self.done_tracker = [False] * rows

    def __call__(self, input_ids, scores, **kwargs):
        for row in range(min(len(self.done_tracker), len(input_ids))):
            self.done_tracker[row] |= input_ids[row, -2:].tolist() == [A, A]
        return False not in self.done_tracker


def cut_at(responses, ends):
    """Return each response up to the first place where `ends(tokens so far)`."""
    return [
        next((response[: n + 1] for n in range(len(response)) if ends(response[: n + 1])), response)
        for response in responses
    ]


def twice(tokens):
    return tokens.count(A) == 2


@pytest.fixture(scope="module", params=["llama", "bloom", "mamba"])
def drawn(request):
    """Return a policy, its batch, and what it writes if no criterion of the caller's ends it."""
    model, batch = tiny_model(request.param), left_padded_batch([7, 5])
    pools, _ = draw(model, batch, NUM_CANDIDATES, **BIAS)
    assert sum(response.count(A) > 2 for pool in pools for response in pool) > 2
    return model, batch, pools


@pytest.mark.parametrize(
    "make",
    [lambda: RowFlags(2 * NUM_CANDIDATES), FlagsOnFirstCall, LockedFlags, lambda: RowFlags(2)],
    ids=["made for all rows", "sized at the first call", "not to be copied", "made for the prompts"],
)
def test_flags_per_row_end_their_own_row(drawn, make):
    model, batch, free = drawn
    ended, _ = draw(model, batch, NUM_CANDIDATES, stopping_criteria=StoppingCriteriaList([make()]), **BIAS)
    assert ended == [cut_at(pool, twice) for pool in free]


def test_one_bool_ends_the_candidate_it_was_asked_about(drawn):
    model, batch, free = drawn
    one = {name: tensor[:1] for name, tensor in batch.items()}
    expected = cut_at(free[0], twice)
    assert expected != free[0]
    for criterion in (SecondOfOneRow(), SecondOfOneRow()):
        ended, _ = draw(model, one, NUM_CANDIDATES, stopping_criteria=StoppingCriteriaList([criterion]), **BIAS)
        assert ended == [expected]


def test_trackers_of_the_harness_end_each_row_of_one_prompt(drawn):
    model, batch, free = drawn
    one = {name: tensor[:1] for name, tensor in batch.items()}
    criteria = StoppingCriteriaList([HarnessTracker(1)])
    ended, _ = draw(model, one, NUM_CANDIDATES, stopping_criteria=criteria, **BIAS)
    assert ended == [cut_at(free[0], lambda tokens: tokens[-2:] == [A, A])]


def test_trackers_of_several_prompts_end_them_together(drawn):
    """The criterion sees one candidate of every prompt, as in plain `generate`, and its bool is about all of them."""
    model, batch, free = drawn
    criteria = StoppingCriteriaList([HarnessTracker(2)])
    ended, _ = draw(model, batch, NUM_CANDIDATES, stopping_criteria=criteria, **BIAS)
    for index in range(NUM_CANDIDATES):
        rows = [pool[index] for pool in free]
        # Both must have written A A; a row that has ended continues with padding and does not.
        places = [next((n for n in range(1, len(row)) if row[n - 1 : n + 1] == [A, A]), None) for row in rows]
        last = None if None in places else max(places)
        assert [pool[index] for pool in ended] == [row if last is None else row[: last + 1] for row in rows]


def test_a_bool_for_all_rows_of_what_cannot_be_copied_is_refused():
    class Locked(SecondOfOneRow):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ArgumentError, match=r"one bool per row, got True .* Return a tensor of shape"):
        draw(
            tiny_model("llama"),
            left_padded_batch([7]),
            NUM_CANDIDATES,
            stopping_criteria=StoppingCriteriaList([Locked()]),
            **BIAS,
        )


@pytest.mark.parametrize("answer", [torch.zeros(3), [True, False], None], ids=["too long", "too short", "none"])
def test_an_answer_that_is_none_is_named(answer):
    class Odd(StoppingCriteria):
        def __init__(self):
            self.word = "x"

        def __call__(self, input_ids, scores, **kwargs):
            return answer

    criteria = StoppingCriteriaList([Odd()])
    with pytest.raises(ArgumentError, match=r"`Odd` must answer .* Return a tensor of shape \(len\(input_ids\),\)"):
        draw(tiny_model("llama"), left_padded_batch([7]), NUM_CANDIDATES, stopping_criteria=criteria, **BIAS)


class RecordingProcessor(LogitsProcessor):
    def __init__(self):
        self.seen, self.lock = [], threading.Lock()

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        return scores


class RecordingCriterion(StoppingCriteria):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_what_records_is_shown_what_plain_generate_shows():
    """Greedy, so that plain `generate` writes the same; ended rows continue with padding."""
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    settings = {"sequence_bias": [[[EOS], 2.5]], "max_new_tokens": 12, "do_sample": False}
    seen = []
    for run in ("plain", "ours"):
        processor, criterion = RecordingProcessor(), RecordingCriterion()
        own = {
            "logits_processor": LogitsProcessorList([processor]),
            "stopping_criteria": StoppingCriteriaList([criterion]),
        }
        if run == "plain":
            model.generate(**batch, **own, **settings)
        else:
            draw(model, batch, 1, **own, **settings)
        seen.append((processor.seen, criterion.seen))
    assert len(seen[0][0]) > 3
    assert seen[0] == seen[1]


def test_rows_stand_as_in_plain_generate_for_several_candidates():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    processor = RecordingProcessor()
    pools, _ = draw(model, batch, 3, logits_processor=LogitsProcessorList([processor]), max_new_tokens=5)
    prompts = batch["input_ids"].tolist()
    for step, rows in enumerate(processor.seen):
        for row, tokens in enumerate(rows):
            response = pools[row // 3][row % 3]
            assert tokens[:7] == prompts[row // 3]
            assert tokens[7:][: len(response)] == response[:step]
    assert len(processor.seen) == max(len(response) for pool in pools for response in pool)


class Grammar(LogitsProcessor):
    """Processor like compiled grammars: the first call makes a matcher per row, each later call adds one token."""

    def __init__(self):
        self.matchers, self.lock = [], threading.Lock()

    def __call__(self, input_ids, scores):
        if not self.matchers:
            self.matchers = [[] for _ in input_ids]
        else:
            assert len(self.matchers) == len(input_ids)
            for matcher, tokens in zip(self.matchers, input_ids[:, -1].tolist(), strict=True):
                matcher.append(tokens)
        # A token may be followed by the next higher one or by the end.
        for row, matcher in enumerate(self.matchers):
            allowed = [EOS, matcher[-1] + 1 if matcher[-1] != EOS else EOS] if matcher else [20, 40]
            mask = torch.full_like(scores[row], -torch.inf)
            mask[allowed] = 0
            scores[row] = scores[row] + mask
        return scores


def test_a_grammar_that_cannot_be_copied_holds_for_every_candidate():
    pools, _ = draw(
        tiny_model("llama"),
        left_padded_batch([7, 5]),
        20,
        logits_processor=LogitsProcessorList([Grammar()]),
        pad_token_id=EOS,
        max_new_tokens=6,
        temperature=1e6,
    )
    assert len({tuple(response) for pool in pools for response in pool}) > 4
    for pool in pools:
        for response in pool:
            words = response[:-1] if response[-1] == EOS else response
            assert words == list(range(words[0], words[0] + len(words))) and words[0] in (20, 40)


def test_allowed_tokens_are_asked_for_by_the_prompt_and_by_a_bound_method():
    class Allowed:
        def __init__(self):
            self.lock, self.asked = threading.Lock(), []

        def tokens(self, prompt, ids):
            self.asked.append(prompt)
            return [20 + prompt, 30 + prompt]

    allowed = Allowed()
    pools, _ = draw(
        tiny_model("llama"), left_padded_batch([7, 5]), 8, prefix_allowed_tokens_fn=allowed.tokens, batch_size=3
    )
    assert set(allowed.asked) == {0, 1}
    for prompt, pool in enumerate(pools):
        assert {token for response in pool for token in response} == {20 + prompt, 30 + prompt}


def test_one_entry_per_prompt_is_that_of_the_prompt():
    class Bias(LogitsProcessor):
        def __init__(self, bias):
            self.bias = bias

        def __call__(self, input_ids, scores):
            return scores + self.bias

    bias = torch.full((2, 64), -torch.inf)
    bias[0, 20:24] = bias[1, 30:34] = 0.0
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    pools, _ = draw(model, batch, 8, logits_processor=LogitsProcessorList([Bias(bias)]))
    for pool, first in zip(pools, (20, 30), strict=True):
        assert {token for response in pool for token in response} <= set(range(first, first + 4))
    chunked, _ = draw(model, batch, 8, logits_processor=LogitsProcessorList([Bias(bias)]), batch_size=4)
    assert chunked == pools


def test_rowwise_classes_of_the_callers_take_any_batch():
    class Alone(StoppingCriteria):
        rowwise = True

        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == A

    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    free, _ = draw(model, batch, NUM_CANDIDATES, **BIAS)
    own = {"stopping_criteria": StoppingCriteriaList([Alone()]), "batch_size": 3}
    assert draw(model, batch, NUM_CANDIDATES, **own, **BIAS)[0] == [
        cut_at(pool, lambda t: t[-1] == A) for pool in free
    ]


def test_a_smaller_batch_is_refused_where_all_rows_are_seen_together():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    with pytest.raises(ArgumentError, match="`batch_size` must be at least 12 with `RowFlags`"):
        draw(model, batch, 6, batch_size=11, stopping_criteria=StoppingCriteriaList([RowFlags(12)]))
    with pytest.raises(ArgumentError, match="`batch_size` must be at least 12 with max_time"):
        draw(model, batch, 6, batch_size=11, max_time=100.0)


def test_the_clock_ends_all_candidates_in_the_same_moment_and_says_so():
    model = tiny_model("llama")
    with pytest.warns(ItpWarning, match=r"`max_time` ended 12 of 12 responses early"):
        pools, _ = draw(
            model, left_padded_batch([7, 5]), 6, max_time=0.05, max_new_tokens=100_000, suppress_tokens=[EOS]
        )
    assert len({len(response) for pool in pools for response in pool}) == 1


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (hf_itp.get_strategy("pessimism", beta=0.1, pool="fresh"), {}, "`RowFlags` sees all candidates of a call"),
        (hf_itp.get_strategy("pessimism", beta=0.1, pool="fresh"), {"max_time": 9.0}, "sees all candidates of a call"),
        ("best_of_n", {"early_rejection": 0.5}, "`early_rejection` must come with .* got `RowFlags`"),
        ("best_of_n", {"batch_size": 4}, "`batch_size` must be at least 6 with `RowFlags`"),
    ],
    ids=["draws again", "draws again by the clock", "ends candidates early", "smaller batch"],
)
def test_what_cannot_be_honoured_is_refused_before_the_first_pass(tokenizer, strategy, settings, message):
    model, passes = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda *arguments: passes.append(1))
    with pytest.raises(ArgumentError, match=message):
        model.generate(
            **left_padded_batch([7]), strategy=strategy, prompts=["q"], num_candidates=6, max_new_tokens=4,
            reward_model=lambda prompts, completions, **kwargs: [0.0] * len(completions), tokenizer=tokenizer,
            stopping_criteria=StoppingCriteriaList([RowFlags(6)]), **settings,
        )  # fmt: skip
    assert passes == []
