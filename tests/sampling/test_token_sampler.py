"""
Test which processors run on which rows: the four usual ones fused, all others exactly as transformers' list.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import logits_process as processors

from hf_itp.sampling.token_sampler import TokenSampler
from tests.sampling.drawing import draw
from tests.tiny import left_padded_batch, tiny_model


class BansTokenByRow(LogitsProcessor):
    """Processor that knows rows by position, as a user's may: row `i` never gets token `10 + i`."""

    def __call__(self, input_ids, scores):
        assert len(input_ids) == 3, "the rows of the prompts, no more and no fewer"
        for row in range(len(scores)):
            scores[row, 10 + row] = -torch.inf
        return scores


def sampler(*items, do_sample=True):
    return TokenSampler(LogitsProcessorList(items), do_sample)


def test_usual_warpers_are_fused():
    fused = sampler(
        processors.TemperatureLogitsWarper(0.5),
        processors.TopKLogitsWarper(7),
        processors.TopPLogitsWarper(0.9),
        processors.MinPLogitsWarper(0.1),
    )
    assert fused.warp == {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1}
    assert sampler().warp == {}


@pytest.mark.parametrize(
    "items",
    [
        (RepetitionPenaltyLogitsProcessor(1.2),),
        (processors.TopKLogitsWarper(7), processors.TemperatureLogitsWarper(0.5)),
        (processors.TopKLogitsWarper(7), processors.TopKLogitsWarper(3)),
        (processors.TypicalLogitsWarper(0.9),),
    ],
    ids=["penalty", "other order", "twice", "other warper"],
)
def test_anything_else_is_left_to_the_processors(items):
    assert sampler(*items).warp is None
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 4], [5, 6]])
    expected = LogitsProcessorList(items)(ids, logits.clone()).argmax(-1)
    assert sampler(*items, do_sample=False).process(ids, logits).argmax(-1).equal(expected)


GENERATION_SETTINGS = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"bad_words_ids": [[7], [8, 9]]},
    {"suppress_tokens": [5, 11]},
    {"begin_suppress_tokens": [12]},
    {"forced_eos_token_id": 2},
    {"sequence_bias": [[[6], 3.0]]},
    {"exponential_decay_length_penalty": (3, 1.5)},
    {"logits_processor": LogitsProcessorList([BansTokenByRow()])},
    {"prefix_allowed_tokens_fn": lambda row, ids: [2, 20 + row, 30 + row]},
    {"guidance_scale": 1.5},
    {"renormalize_logits": True},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
]


@pytest.mark.parametrize("settings", GENERATION_SETTINGS, ids=lambda settings: ",".join(settings))
def test_processors_are_honoured_exactly(settings):
    """Greedy tokens under each setting equal plain `generate`'s, left padding included."""
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    plain = model.generate(**batch, max_new_tokens=10, do_sample=False, **settings)[:, 9:]
    pools, _ = draw(model, batch, 1, do_sample=False, max_new_tokens=10, **settings)
    for [response], expected in zip(pools, plain.tolist(), strict=True):
        assert response == expected[: len(response)]


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.8}, {"logits_processor": LogitsProcessorList([BansTokenByRow()])}, {"typical_p": 0.8}],
    ids=lambda settings: ",".join(settings),
)
def test_candidates_under_processors_do_not_depend_on_chunks(settings):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    together, _ = draw(model, batch, 3, **settings)
    assert draw(model, batch, 3, batch_size=3, **settings)[0] == together


def test_processor_that_knows_rows_meets_every_candidate():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    free, _ = draw(model, batch, 40)
    assert all(any(10 + row in response for response in pool) for row, pool in enumerate(free))
    banned, _ = draw(model, batch, 40, logits_processor=LogitsProcessorList([BansTokenByRow()]))
    assert not any(10 + row in response for row, pool in enumerate(banned) for response in pool)


def test_penalty_ignores_the_padding_of_its_own_row():
    """transformers keeps one padding length per prompt; rows that repeat, leave and reorder must take it along."""
    model, batch = tiny_model("llama"), left_padded_batch([9, 3])
    pools, _ = draw(model, batch, 5, repetition_penalty=1.9)
    alone, _ = draw(model, {"input_ids": batch["input_ids"][1:, 6:]}, 5, repetition_penalty=1.9)
    assert pools[1] == alone[0]
