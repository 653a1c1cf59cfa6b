"""
Test rows that take the places of finished ones: the same responses as in any other batch, in fewer passes.
"""

from __future__ import annotations

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_itp.sampling import sampler as sampler_module
from hf_itp.sampling.shared_prefix import SharedPrefixDecoder
from tests.architectures import SLIDING_WINDOW
from tests.sampling.drawing import draw
from tests.sampling.test_architectures import SHARED
from tests.tiny import EOS, left_padded_batch, tiny_model

pytestmark = pytest.mark.oldest

ROOM = 6


@pytest.fixture
def passes(monkeypatch):
    """Record the number of rows of each pass of the shared path, except for its trial step."""
    sizes = []
    original = SharedPrefixDecoder.advance

    def advance(self, input_ids):
        sizes.append(len(input_ids))
        return original(self, input_ids)

    monkeypatch.setattr(SharedPrefixDecoder, "advance", advance)
    return sizes


def often_ending(architecture, **settings):
    """Return a model and settings whose responses end after some 6 tokens, so that places are free at every step."""
    model = tiny_model(architecture, **settings)
    bias = [[[EOS], 2.0]]
    return model, {"sequence_bias": bias, "max_new_tokens": 30}


@pytest.mark.parametrize("architecture", SHARED)
def test_pool_is_the_same_with_room_for_a_few(architecture):
    """Compare about 300 tokens per model in float32, for prompts of mixed length."""
    model, settings = often_ending(architecture)
    batch = left_padded_batch([7, 1, 12, 30])
    together, path = draw(model, batch, 8, **settings)
    assert path == "shared"
    assert len({len(response) for pool in together for response in pool}) > 5
    assert draw(model, batch, 8, batch_size=ROOM, **settings)[0] == together
    assert draw(model, batch, 8, batch_size=1, **settings)[0] == together


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_oss"])
def test_window_slides_over_each_rows_own_length(architecture):
    model, batch = tiny_model(architecture), left_padded_batch([SLIDING_WINDOW + 1, 3, 20])
    settings = {"sequence_bias": [[[EOS], 1.0]], "max_new_tokens": 4 * SLIDING_WINDOW}
    together, _ = draw(model, batch, 8, **settings)
    assert draw(model, batch, 8, batch_size=ROOM, **settings)[0] == together


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"temperature": 0.7, "top_k": 9},
        {"min_new_tokens": 4},
        {"do_sample": False, "temperature": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_processors_see_each_rows_own_tokens(settings):
    model, ending = often_ending("llama")
    if "top_k" in settings:
        ending.pop("sequence_bias")  # the fused warpers, without a processor beside them
    batch = left_padded_batch([7, 5, 9])
    together, _ = draw(model, batch, 7, **ending, **settings)
    assert draw(model, batch, 7, batch_size=ROOM, **ending, **settings)[0] == together


def test_freed_places_are_taken_and_no_more(passes):
    model, settings = often_ending("llama")
    pools, _ = draw(model, left_padded_batch([7, 5]), 60, batch_size=16, **settings)
    responses = [response for pool in pools for response in pool]
    # The first token of a response needs no pass.
    needed = sum(len(response) - 1 for response in responses)
    steps = passes[1:]
    assert max(steps) == 16
    # Finished rows wait until they are an eighth of the batch, and no rows follow the last ones.
    assert needed / 16 <= len(steps) <= needed / 16 / 0.85 + settings["max_new_tokens"]
    in_chunks = sum(max(map(len, responses[first : first + 16])) - 1 for first in range(0, 120, 16))
    assert len(steps) < 0.7 * in_chunks


def test_what_has_ended_is_not_drawn_again_for_want_of_memory(monkeypatch, passes):
    model, settings = often_ending("llama")
    batch = left_padded_batch([7, 5])
    expected, _ = draw(model, batch, 20, **settings)
    passes.clear()
    begun, original, counting = [], sampler_module.decode_rows, SharedPrefixDecoder.advance

    def decode_rows(*arguments, places, most_rows, **more):
        begun.append((len(places), most_rows))
        return original(*arguments, places=places, most_rows=most_rows, **more)

    def advance(self, input_ids):
        if len(passes) == 20:
            passes.append(0)
            raise MemoryError
        return counting(self, input_ids)

    monkeypatch.setattr(sampler_module, "decode_rows", decode_rows)
    monkeypatch.setattr(SharedPrefixDecoder, "advance", advance)
    pools, _ = draw(model, batch, 20, batch_size=8, **settings)
    assert pools == expected
    (all_rows, room), (rest, less_room) = begun
    assert (all_rows, room, less_room) == (40, 8, 4)
    assert rest <= 30, "at least ten had ended by the twentieth pass"


def test_stopping_criteria_see_rows_of_one_length():
    seen = []

    class Watching(StoppingCriteria):
        rowwise = True

        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.shape)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model, settings = often_ending("llama")
    draw(
        model,
        left_padded_batch([7, 5]),
        20,
        batch_size=8,
        stopping_criteria=StoppingCriteriaList([Watching()]),
        **settings,
    )
    assert max(rows for rows, _ in seen) == 8
    assert len({length for _, length in seen}) > 10
