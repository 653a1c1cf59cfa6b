"""
Test what a decoder does to its rows beyond what the tokens show.
"""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from hf_itp.models.host_names import cache_argument
from hf_itp.sampling.call import select_rows
from hf_itp.sampling.decoders import ExpandedCacheDecoder, RepeatedPromptDecoder, make_decoder
from hf_itp.sampling.shared_prefix import SharedPrefixDecoder
from tests.sampling.drawing import prepared
from tests.tiny import left_padded_batch, tiny_model

pytestmark = pytest.mark.oldest


@pytest.fixture(autouse=True)
def as_inside_generate():
    with torch.no_grad():
        yield


@pytest.fixture(params=["llama", "bloom"], ids=["shared", "expanded"])
def decoder(request):
    model = tiny_model(request.param)
    made = make_decoder(prepared(model, left_padded_batch([7, 5])))
    made.model = model
    return made


def test_rows_are_expanded_and_compacted_alike():
    arguments = {
        "attention_mask": torch.arange(6).view(2, 3),
        "position_ids": torch.arange(18).view(3, 2, 3),
        "encoder_outputs": BaseModelOutput(last_hidden_state=torch.arange(2.0)[:, None]),
        "pixel_values": torch.zeros(5, 3),
        "use_cache": True,
        "scalar": torch.tensor(3),
    }
    expanded = select_rows(arguments, torch.tensor([0, 0, 1]), num_rows=2)
    assert expanded["attention_mask"].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert expanded["position_ids"].shape == (3, 3, 3)
    assert expanded["encoder_outputs"].last_hidden_state.tolist() == [[0], [0], [1]]
    assert expanded["pixel_values"].shape == (5, 3), "no row of the batch"
    assert expanded["use_cache"] is True and expanded["scalar"] == 3
    assert arguments["attention_mask"].shape == (2, 3)


def test_prompt_is_run_once_however_many_batches_start(decoder):
    passes = []
    decoder.model.register_forward_pre_hook(lambda module, args, kwargs: passes.append(1), with_kwargs=True)
    first = decoder.start(torch.tensor([0, 0, 1]))
    again = decoder.start(torch.tensor([0, 1, 1]))
    assert passes == []
    assert first[0].equal(again[0]) and first[2].equal(again[1])


def test_batches_do_not_leak_into_each_other(decoder):
    ids = torch.cat([left_padded_batch([7, 5])["input_ids"], torch.tensor([[9], [9]])], dim=1)
    decoder.start(torch.tensor([0, 1]))
    expected = decoder.advance(ids)
    decoder.start(torch.tensor([0, 1]))
    assert decoder.advance(ids).equal(expected)


def test_memory_of_a_row_on_the_expanded_cache_grows_with_its_length():
    model = tiny_model("bloom")
    decoder = make_decoder(prepared(model, left_padded_batch([7, 5])))
    # Keys and values of 2 layers, 4 heads of 8 numbers of 4 bytes: 512 bytes a token, and a mask.
    assert 512 * 100 <= decoder.bytes_per_row(100) <= 560 * 100


@pytest.mark.parametrize("lengths", [[7, 5], [70, 5]])
def test_memory_of_a_row_on_a_shared_prefix_is_that_of_its_response(lengths):
    model = tiny_model("llama")
    decoder = make_decoder(prepared(model, left_padded_batch(lengths)))
    # Keys and values of 2 layers, 2 heads of 8 numbers of 4 bytes: 256 bytes a token, twice while the buffer grows.
    assert decoder.bytes_per_row(max(lengths) + 100) == 2 * 256 * 100


@pytest.mark.parametrize(
    ("architecture", "settings", "kind"),
    [
        ("llama", {}, SharedPrefixDecoder),
        ("bloom", {}, ExpandedCacheDecoder),
        ("t5", {}, ExpandedCacheDecoder),
        ("mamba", {}, ExpandedCacheDecoder),
        ("llama", {"use_cache": False}, RepeatedPromptDecoder),
        ("llama", {"cache_implementation": "static"}, RepeatedPromptDecoder),
        ("recurrent_gemma", {}, RepeatedPromptDecoder),
    ],
    ids=str,
)
def test_prompt_is_paid_for_once_wherever_rows_can_be_copied(architecture, settings, kind):
    model = tiny_model(architecture)
    chosen = make_decoder(prepared(model, left_padded_batch([7, 5]), **settings))
    assert isinstance(chosen, kind)
    assert chosen.rows_can_leave == (kind is not RepeatedPromptDecoder)


def test_cache_of_the_caller_is_not_written_to():
    model, cache = tiny_model("llama"), DynamicCache(config=tiny_model("llama").config)
    call = prepared(model, left_padded_batch([7, 5]), **{cache_argument(model.forward): cache})
    make_decoder(call).start(torch.tensor([0, 0, 1]))
    assert cache.get_seq_length() == 0
