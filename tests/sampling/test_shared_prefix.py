"""
Test shared-prefix attention: exact, without a change of the model, and with the same tokens as the other path.
"""

from __future__ import annotations

import threading

import peft
import pytest
import torch
from transformers import AttentionInterface

from hf_itp.functional.kernels.attention import attend, merge_attention
from hf_itp.sampling import decoders
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.shared_prefix.attention import ATTENTION, shared_prefix_attention
from hf_itp.sampling.shared_prefix.cache import (
    CannotShare,
    SharedLayer,
    SharedPrefixCache,
)
from tests.architectures import SLIDING_WINDOW
from tests.sampling.drawing import draw
from tests.sampling.test_architectures import SHARED
from tests.tiny import left_padded_batch, tiny_model

pytestmark = pytest.mark.oldest


def refuses(*arguments):
    raise CannotShare("told not to")


@pytest.fixture
def expanded(monkeypatch):
    """Return a function that draws on the fallback path."""

    def on_fallback(*arguments, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "SharedPrefixDecoder", refuses)
            pools, path = draw(*arguments, **settings)
        assert path == "expanded"
        return pools

    return on_fallback


@pytest.mark.parametrize("architecture", SHARED)
def test_pool_is_token_identical_to_the_fallbacks(architecture, expanded):
    """Compare about 500 tokens per model in float32, for prompts of mixed length in one batch."""
    model, batch = tiny_model(architecture), left_padded_batch([7, 1, 12, 30])
    shared, path = draw(model, batch, 8, max_new_tokens=16)
    assert path == "shared"
    assert shared == expanded(model, batch, 8, max_new_tokens=16)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("length", [1, SLIDING_WINDOW - 1, SLIDING_WINDOW, SLIDING_WINDOW + 1, 20])
def test_window_slides_out_of_the_prompt_into_the_response(architecture, length, expanded):
    model, batch = tiny_model(architecture), left_padded_batch([length])
    shared, path = draw(model, batch, 6, max_new_tokens=3 * SLIDING_WINDOW)
    assert path == "shared"
    assert shared == expanded(model, batch, 6, max_new_tokens=3 * SLIDING_WINDOW)


def test_response_longer_than_a_block_of_the_buffer(expanded):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    arguments = {"max_new_tokens": 150, "eos_token_id": None}
    assert draw(model, batch, 3, **arguments)[0] == expanded(model, batch, 3, **arguments)


@pytest.mark.parametrize("order", [[0, 1, 0, 1, 2], [2, 2, 0], [1]])
def test_rows_of_a_prompt_may_stand_anywhere(order):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    logits = {}

    def decode(model, input_ids, **prepared):
        decoder = decoders.make_decoder(DecodingCall.of(model, input_ids, **prepared))
        for name, rows in {"order": order, "sorted": [0, 1, 2]}.items():
            index = torch.tensor(rows)
            decoder.start(index)
            ids = torch.cat([input_ids[index], 20 + index[:, None]], dim=1)
            decoder.advance(ids)
            ids = torch.cat([ids, 30 + index[:, None]], dim=1)
            logits[name] = decoder.advance(ids)
        return input_ids

    model.generate(**batch, custom_generate=decode, max_new_tokens=4)
    torch.testing.assert_close(logits["order"], logits["sorted"][order], rtol=0, atol=1e-5)


def test_model_is_not_touched_while_it_is_viewed():
    model, batch = tiny_model("gemma2"), left_padded_batch([7, 5])
    before = [(module, dict(vars(module))) for module in model.modules()]
    weights = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    seen = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args: seen.append((module.config._attn_implementation, model.config._attn_implementation))
    )
    _, path = draw(model, batch, 3)
    assert path == "shared"
    assert (ATTENTION, model.config._attn_implementation) in seen, "ours inside the view, the model's own outside"
    assert all(vars(module) == contents for module, contents in before)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == weights


def test_plain_generate_runs_undisturbed_beside_it():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    plain, (shared, _) = model.generate(**batch, max_new_tokens=40), draw(model, batch, 8, max_new_tokens=40)
    results = {"plain": [], "shared": []}
    threads = [
        threading.Thread(
            target=lambda: results["plain"].extend(model.generate(**batch, max_new_tokens=40) for _ in range(8))
        ),
        *(
            threading.Thread(
                target=lambda: results["shared"].extend(draw(model, batch, 8, max_new_tokens=40)[0] for _ in range(4))
            )
            for _ in range(2)
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results["plain"]) == 8 and all(sequences.equal(plain) for sequences in results["plain"])
    assert results["shared"] == [shared] * 8


def test_soft_cap_the_models_own_attention_drops_is_not_put_back():
    """transformers 5.17's sdpa silently drops it, 5.23's refuses; the policy is what the model computes."""
    prefix = (torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    state = torch.zeros(2, 1, 1, 4)
    for honours_softcap in (True, False):
        cache = SharedPrefixCache([SharedLayer([prefix])], honours_softcap=honours_softcap)
        cache.join(torch.tensor([0, 0]))
        with cache.active():
            key, value = cache.update(state, state, 0)
            if honours_softcap:
                output, _ = shared_prefix_attention(None, state, key, value, None, softcap=5.0)
                assert output.shape == (2, 1, 1, 4)
            else:
                with pytest.raises(CannotShare, match="soft cap"):
                    shared_prefix_attention(None, state, key, value, None, softcap=5.0)


@pytest.mark.parametrize("reason", ["own attention", "instance forward", "custom positions"])
def test_what_cannot_be_shared_takes_the_other_path(reason):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    expected, _ = draw(model, batch, 3)
    if reason == "own attention":

        def attention(module, query, key, value, attention_mask, scaling, **kwargs):
            return AttentionInterface._global_mapping["sdpa"](
                module, query, key, value, attention_mask, scaling=scaling, is_causal=query.shape[2] > 1
            )

        AttentionInterface.register("a_users_own", attention)
        model.set_attn_implementation("a_users_own")
        batch = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
        expected = expected[:1]
    elif reason == "instance forward":
        model.model.layers[0].forward = model.model.layers[0].forward
    else:
        batch["position_ids"] = torch.arange(9)[None, :7].repeat(2, 1) + 3
        expected = None
    pools, path = draw(model, batch, 3)
    assert path == "expanded"
    assert expected is None or pools == expected


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("widths", [(8, 8), (8, 4)])
def test_parts_attended_apart_merge_into_the_whole(softcap, widths):
    """Compare with softmax over all keys in float64, to which float32 is exact to 1e-6."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(2, 3, 11, 8, generator=generator)
    value, sink = torch.randn(2, 3, 11, widths[1], generator=generator), torch.randn(3, 1, generator=generator)
    logits = (query.double() @ key.double().transpose(-1, -2)) * 0.3
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    for with_sink in (None, sink):
        columns = logits if with_sink is None else torch.cat([logits, sink.double().expand(2, 3, 5)[..., None]], -1)
        expected = columns.softmax(-1)[..., :11] @ value.double()
        parts = [attend(query, key[:, :, a:b], value[:, :, a:b], 0.3, softcap) for a, b in ((0, 4), (4, 5), (5, 11))]
        merged = merge_attention([output for output, _ in parts], [lse for _, lse in parts], with_sink)
        torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-6)


def test_part_without_keys_counts_for_nothing():
    output, lse = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, -2.0])
    merged = merge_attention([output, torch.zeros(2, 3)], [lse, torch.full((2,), -torch.inf)])
    assert merged.equal(output)


def test_attention_asked_for_what_it_does_not_know_is_noticed(expanded):
    """A model tilts its attention by an argument of its own: the first step shows it, and the other path is taken."""
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    model.set_attn_implementation("sdpa")
    plain = AttentionInterface._global_mapping["sdpa"]
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"tilt": 2.0}), with_kwargs=True
        )

    def tilted(module, query, *args, tilt=1.0, **kwargs):
        return plain(module, query * tilt, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(AttentionInterface._global_mapping, "sdpa", tilted)
        pools, path = draw(model, batch, 4)
        assert path == "expanded"
        assert pools == expanded(model, batch, 4)


def test_dropout_of_a_model_in_training_takes_the_other_path():
    model, batch = tiny_model("llama", attention_dropout=0.1), left_padded_batch([7, 5])
    assert draw(model.eval(), batch, 2)[1] == "shared"
    with torch.random.fork_rng(devices=[]):
        assert draw(model.train(), batch, 2)[1] == "expanded"


@pytest.mark.uses_global_rng
def test_lora_policy_shares_and_draws_what_the_fallback_draws(expanded):
    wrapped = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = left_padded_batch([7, 5])
    pools, path = draw(wrapped.eval(), batch, 6)
    assert path == "shared"
    assert pools == expanded(wrapped, batch, 6)
    with wrapped.disable_adapter():
        assert draw(wrapped, batch, 6)[0] != pools
