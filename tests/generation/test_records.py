"""Test the rows of `StrategyOutput.to_records`: each value is what the output, the tokenizer or arithmetic says."""

from __future__ import annotations

import copy
import json
import pickle

import pandas as pd
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import hf_itp
from hf_itp import EarlyRejection
from hf_itp.errors import ArgumentError
from tests.tiny import EOS, character_tokenizer, left_padded_batch, tiny_model, tiny_tokenizer

N, LIMIT = 8, 6


def by_length(prompts, completions, completion_ids, **kwargs):
    return [len(ids) + len(text) / 100 for ids, text in zip(completion_ids, completions, strict=True)]


def run(strategy="pessimism", architecture="llama", lengths=(3, 5), **arguments):
    settings = {"num_candidates": N, "num_return_sequences": 2, "seed": 0, "max_new_tokens": LIMIT, **arguments}
    return tiny_model(architecture).generate(
        **left_padded_batch(list(lengths)),
        strategy=strategy,
        reward_model=by_length,
        prompts=[f"prompt {row}" for row in range(len(lengths))],
        return_dict_in_generate=True,
        **{"tokenizer": tiny_tokenizer(), **settings},
    )


def unpadded_prompts(lengths=(3, 5)):
    batch = left_padded_batch(list(lengths))
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_row_holds_what_the_output_says_of_its_candidate():
    output, tokenizer = run(), tiny_tokenizer()
    records = output.to_records(tokenizer)
    assert [(record["prompt"], record["candidate"]) for record in records] == [
        (row, index) for row in range(2) for index in range(N)
    ]
    for record in records:
        row, index = record["prompt"], record["candidate"]
        ids = output.candidates[row][index].tolist()
        prompt = unpadded_prompts()[row]
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        assert before + record["text"] == tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
        assert record["reward"] == output.candidate_rewards[row, index].item()
        assert record["probability"] == output.probabilities[row, index].item()
        assert record["num_tokens"] == len(ids)
        assert record["finish_reason"] == ("stop" if ids[-1] == EOS else "length")
        winners = output.selected[row].tolist()
        assert record["selected"] == (winners.index(index) if index in winners else None)
    assert {record["finish_reason"] for record in records} == {"stop", "length"}  # the seed shows both


def test_records_make_a_table_and_are_json():
    records = run().to_records(tiny_tokenizer())
    assert json.loads(json.dumps(records)) == records
    frame = pd.DataFrame(records)
    assert frame.shape == (2 * N, 8) and frame.reward.dtype == float and frame.num_tokens.dtype == int


def test_texts_are_those_of_the_winners_in_the_order_selected():
    output = run()
    records = output.to_records(tiny_tokenizer())
    selected = sorted((r for r in records if r["selected"] is not None), key=lambda r: (r["prompt"], r["selected"]))
    assert [text for texts in output.texts for text in texts] == [record["text"] for record in selected]


def test_law_that_is_not_known_and_a_candidate_never_drawn_are_none():
    output = run(hf_itp.get_strategy("pessimism", pool="fresh", beta=3.0))
    records = output.to_records(tiny_tokenizer())
    assert all(record["probability"] is None for record in records)
    assert [record["prompt"] for record in records].count(0) == len(output.candidates[0]) > N
    without = copy.copy(output)
    without.candidate_rewards = output.candidate_rewards.clone()
    without.candidate_rewards[1, 0] = torch.nan  # of a candidate without a reward
    assert without.to_records(tiny_tokenizer())[len(output.candidates[0])]["reward"] is None


@pytest.mark.parametrize("architecture", ["llama", "t5", "mamba"])
def test_end_token_at_the_limit_is_a_stop(architecture):
    """Reasons by plain arithmetic on every path of the forward passes: shared, encoder-decoder, repeated."""
    output = run("best_of_n", architecture, num_candidates=64, max_new_tokens=4)
    seen = set()
    for pool, reasons in zip(output.candidates, output.finish_reasons, strict=True):
        for ids, reason in zip(pool, reasons, strict=True):
            ended = ids[-1].item() == EOS
            assert reason == ("stop" if ended else "length") and (ended or len(ids) == 4)
            seen.add((reason, len(ids)))
    assert {("length", 4), ("stop", 4)} <= seen  # 128 responses: both occur at this seed


def test_stop_string_at_the_limit_is_a_stop():
    tokenizer, seen = character_tokenizer(), set()
    free = run("best_of_n", num_candidates=64, max_new_tokens=3, tokenizer=tokenizer)
    stop = next(tokenizer.decode(ids)[1:] for ids in free.candidates[0] if len(ids) == 3 and ids[-1] != EOS)
    output = run("best_of_n", num_candidates=64, max_new_tokens=3, tokenizer=tokenizer, stop_strings=[stop])
    for pool, reasons in zip(output.candidates, output.finish_reasons, strict=True):
        for ids, reason in zip(pool, reasons, strict=True):
            ended = ids[-1].item() == EOS or tokenizer.decode(ids).endswith(stop)
            assert reason == ("stop" if ended else "length")
            seen.add((reason, ids[-1].item() == EOS, len(ids)))
    assert ("stop", False, 3) in seen and ("length", False, 3) in seen


class EndsAt(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize(("further", "reason"), [(2, "stop"), (LIMIT, "stop"), (LIMIT + 1, "length")])
def test_own_criterion_is_a_stop(further, reason):
    criteria = StoppingCriteriaList([EndsAt(5 + further)])
    output = run("best_of_n", stopping_criteria=criteria, eos_token_id=None)
    assert {one for reasons in output.finish_reasons for one in reasons} == {reason}


@pytest.mark.filterwarnings("ignore:`max_time` ended")
def test_time_that_is_over_is_said():
    output = run("best_of_n", max_new_tokens=5_000, max_time=0.2, eos_token_id=None)
    assert {one for reasons in output.finish_reasons for one in reasons} == {"time"}


@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_rejected_are_those_the_diagnostics_name(audit):
    output = run(
        "best_of_n", early_rejection=EarlyRejection(0.5, interval=2, audit=audit), max_new_tokens=24, num_candidates=16
    )
    rejected = output.diagnostics["early_rejection"]["rejected"].tolist()
    for reasons, cut, pool in zip(output.finish_reasons, rejected, output.candidates, strict=True):
        for reason, gone, ids in zip(reasons, cut, pool, strict=True):
            assert reason == ("rejected" if gone else "stop" if ids[-1] == EOS else "length")
    assert any(map(any, rejected))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_reasons_do_not_depend_on_the_batch(batch_size):
    assert run(batch_size=batch_size).finish_reasons == run().finish_reasons


def test_output_stays_a_model_output():
    output = run()
    again = pickle.loads(pickle.dumps(output))
    assert again.to_records(tiny_tokenizer()) == output.to_records(tiny_tokenizer())
    assert output[0] is output.sequences and output["texts"] == output.texts
    assert list(output)[:6] == [
        "sequences", "rewards", "candidates", "candidate_rewards", "probabilities", "selected"
    ]  # fmt: skip


def decoded_by(decoding):
    output = tiny_model("llama").generate(
        **left_padded_batch([3, 5]),
        custom_generate=decoding,
        do_sample=True,
        top_k=0,
        max_new_tokens=LIMIT,
        return_dict_in_generate=True,
    )
    return output.sequences.tolist(), output.probabilities.tolist()


def decoding_of(strategy, **fields):
    more = {"num_candidates": N, "num_return_sequences": 2, "seed": 0, "prompts": ["prompt 0", "prompt 1"]}
    return hf_itp.StrategyDecoding(strategy, by_length, tokenizer=tiny_tokenizer(), **more, **fields)


def test_decoding_takes_a_strategy_by_name_with_its_fields():
    by_name = decoding_of("pessimism", beta=1.5, normalize="zscore")
    assert by_name.strategy == hf_itp.get_strategy("pessimism", beta=1.5, normalize="zscore")
    expected = run(beta=1.5, normalize="zscore")
    assert decoded_by(by_name) == (expected.sequences.tolist(), expected.probabilities.tolist())
    assert decoded_by(decoding_of("pessimism", beta=0.01))[1] != expected.probabilities.tolist()
    # A field may have the name of one of sampling's keywords, which stay `generate`'s own here.
    assert decoding_of("soft_best_of_n", reward_temperature=0.5).strategy.reward_temperature == 0.5


@pytest.mark.parametrize(
    ("strategy", "fields", "message"),
    [
        ("pessimism", {"bata": 0.1}, "no field `bata`. Did you mean 'beta'"),
        ("best_of_n", {"beta": 0.1}, "no field `beta`"),
        ("pessimism", {"beta": -1}, "`beta` must be positive, got -1"),
        (hf_itp.get_strategy("pessimism"), {"beta": 0.1}, "Set the fields where the object is created"),
        ("pesimism", {}, "Did you mean 'pessimism'"),
    ],
)
def test_decoding_refuses_fields_that_are_none(strategy, fields, message):
    with pytest.raises(ArgumentError, match=message):
        decoding_of(strategy, **fields)
