"""
Test which path a call takes for its prompts, why, and what of it is remembered.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings

import peft
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import ModelOutput

from hf_itp import ItpWarning
from hf_itp.errors import UnsupportedModelError
from hf_itp.models.host_names import cache_argument, cache_entry
from hf_itp.sampling import decoders
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.shared_prefix import CannotShare
from hf_itp.sampling.shared_prefix.conditions import check_can_share
from hf_itp.sampling.shared_prefix.decoder import same_logits
from tests.architectures import ARCHITECTURES, ENCODER_DECODER, VISION_LANGUAGE
from tests.sampling.drawing import draw, prepared
from tests.sampling.test_architectures import PATHS, SHARED, batch_for
from tests.tiny import left_padded_batch, tiny_model

OWN_ATTENTION = "its attention does not go through transformers' attention interface"
# The part of a reason that names what was missing. Hybrids differ in what they name first.
REASONS = (
    dict.fromkeys(SHARED, "a prompt's keys and values are kept once for all its candidates")
    | {"t5": "it is an encoder-decoder", "bart": "it is an encoder-decoder"}
    | {"bloom": OWN_ATTENTION, "falcon": OWN_ATTENTION, "mamba": OWN_ATTENTION, "mamba2": OWN_ATTENTION}
    | {"deepseek_v3": "the keys attended to are not the ones that were cached"}
    | {"recurrent_gemma": "the model keeps states outside of its cache"}
    | dict.fromkeys(VISION_LANGUAGE, "beside the prompt's tokens")
)


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch):
    monkeypatch.setattr(decoders, "_warned", set())


def decoder_of(model, batch=None, change=None, **settings):
    call = prepared(model, left_padded_batch([7, 5]) if batch is None else batch, **settings)
    if change is not None:
        change(call.model_kwargs)
    with torch.no_grad():
        return decoders.make_decoder(call)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reason_names_what_was_missing(architecture):
    chosen = decoder_of(tiny_model(architecture), batch_for(architecture))
    assert chosen.path == PATHS[architecture], chosen.path_reason
    assert REASONS.get(architecture, "") in chosen.path_reason and chosen.path_reason
    assert len(chosen.path_reason) < 150


@pytest.mark.parametrize("architecture", SHARED)
def test_contract_with_transformers(architecture):
    """
    Fail with the name of the interface that changed. Then add the new name to `hf_itp.models.host_names` beside the
    old one, or adapt `hf_itp.sampling.shared_prefix.conditions`.
    """
    model = tiny_model(architecture)
    model_kwargs = prepared(model, left_padded_batch([7, 5])).model_kwargs
    name, cache = cache_entry(model_kwargs)
    known = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "past_key_values", "cache"}
    assert set(model_kwargs) <= known, "what `generate` prepares"
    assert name == cache_argument(model.forward), "the name of the cache"
    assert {type(layer).__name__ for layer in cache.layers} <= {"DynamicLayer", "DynamicSlidingWindowLayer"}
    for attribute in (
        "_supports_attention_backend",
        "_is_stateful",
        "_prefill",
        "_update_model_kwargs_for_generation",
    ):
        assert hasattr(model, attribute), attribute
    chosen = decoder_of(model)
    assert chosen.path == "shared", chosen.path_reason


@pytest.mark.parametrize(
    ("settings", "path", "reason"),
    [
        ({"use_cache": False}, "repeated", "`use_cache` is False"),
        ({"cache_implementation": "static"}, "repeated", "the cache has a fixed size"),
    ],
)
def test_reason_of_a_call(settings, path, reason):
    chosen = decoder_of(tiny_model("llama"), **settings)
    assert chosen.path == path and reason in chosen.path_reason


def test_attention_that_is_not_known_is_named():
    model = tiny_model("llama")
    model.set_attn_implementation("flex_attention")
    call = prepared(model, left_padded_batch([7, 5]))
    with pytest.raises(CannotShare, match="the attention implementation 'flex_attention' is not known to share"):
        check_can_share(call)


@torch.no_grad()
def poisoned(model):
    model.lm_head.weight[:] = math.nan
    return model


def test_call_with_nan_logits_is_no_verdict_on_the_model():
    model = tiny_model("llama")
    good = model.lm_head.weight.detach().clone()
    ill = decoder_of(poisoned(model))
    assert ill.path == "expanded" and "NaN" in ill.path_reason
    with torch.no_grad():
        model.lm_head.weight.copy_(good)
    assert decoder_of(model).path == "shared"


def test_step_that_disagrees_is_a_verdict_that_lasts_for_its_mode():
    model = tiny_model("llama")
    # Its steps attend differently than asked, which one comparison shows.
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(tilt_what_is_not_ours, with_kwargs=True)
    first, second = decoder_of(model), decoder_of(model)
    assert first.path == second.path == "expanded"
    assert first.path_reason == second.path_reason == "a step does not agree with the model's own"
    model.set_attn_implementation("eager")
    assert decoder_of(model).path_reason == first.path_reason, "another mode is tried again"


def tilt_what_is_not_ours(module, args, kwargs):
    if module.config._attn_implementation == "hf_itp_shared_prefix":
        kwargs = kwargs | {"hidden_states": kwargs["hidden_states"] * 2}
    return args, kwargs


def test_infinite_logits_agree_where_they_are_equal():
    theirs = torch.tensor([[1.0, -torch.inf, 2.0]])
    assert same_logits(theirs + torch.tensor([0.0, 0.0, 1e-4]), theirs)
    assert not same_logits(torch.tensor([[1.0, 0.5, 2.0]]), theirs)
    assert not same_logits(torch.full((1, 3), torch.nan), torch.full((1, 3), torch.nan))


def new_name(model_kwargs):
    model_kwargs["padding"] = torch.ones(2, 7)


def no_positions(model_kwargs):
    del model_kwargs["position_ids"]


@pytest.mark.parametrize(("change", "interface"), [(new_name, "`padding`"), (no_positions, "no `position_ids`")])
def test_interface_that_is_not_as_known_is_warned_of_once_per_class(change, interface):
    for architecture in ("llama", "qwen2"):
        with pytest.warns(ItpWarning, match=rf"{type(tiny_model(architecture)).__name__}.*{interface}"):
            assert shared_error(tiny_model(architecture), change) == "warned"
        threads = [threading.Thread(target=shared_error, args=(tiny_model(architecture), change)) for _ in range(2)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert shared_error(tiny_model(architecture), change) != "warned"
            for thread in threads:
                thread.start()
                thread.join()


def shared_error(model, change):
    """Return whether the choice of a path warned; the passes after it may fail over what was changed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            decoder_of(model, change=change)
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=2)
    return "warned" if any(issubclass(warning.category, ItpWarning) for warning in caught) else "silent"


def test_no_warning_where_the_caller_gave_more_than_tokens():
    """The caller chose to pass embeddings in place of tokens."""
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings()(left_padded_batch([7])["input_ids"]).detach()
    chosen = decoder_of(model, {"inputs_embeds": embeddings})
    assert chosen.path == "expanded"


class OldCode(LlamaForCausalLM):
    """Checkpoint's own code, written for a transformers that had another name for the cache."""

    def forward(self, input_ids=None, kv=None, **kwargs):
        for name in ("cache", "past_key_values"):
            kwargs.pop(name, None)
        outputs = super().forward(input_ids, **kwargs, **{cache_argument(super().forward): kv})
        return ModelOutput(logits=outputs.logits, kv=kv)


def test_code_that_passes_over_its_cache_is_an_error():
    """Plain `generate` would continue, with each token seeing only itself."""
    model = tiny_model("llama")
    model.__class__ = OldCode
    with pytest.raises(UnsupportedModelError, match=r"OldCode must fill the cache.*Pass use_cache=False"):
        decoder_of(model)
    expected, _ = draw(tiny_model("llama"), left_padded_batch([7, 5]), 3)
    assert draw(model, left_padded_batch([7, 5]), 3, use_cache=False) == (expected, "repeated")


def test_offloaded_cache_is_used_as_it_is():
    """On a CPU transformers offloads no layer of a state-space model, and raises for other models."""
    model, batch = tiny_model("mamba"), left_padded_batch([7, 5, 9])
    settings = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": "offloaded"}
    plain = model.generate(**batch, **settings)[:, -6:].tolist()
    pools, path = draw(model, batch, 1, **settings)
    assert path == "repeated" and [response for [response] in pools] == plain
    assert "offloaded" in decoder_of(model, cache_implementation="offloaded").path_reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads only to and from CUDA devices")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "t5"])
def test_offloaded_cache_on_a_gpu_draws_what_plain_generate_draws(architecture):
    model, batch = tiny_model(architecture).cuda(), left_padded_batch([7, 5, 9])
    batch = {name: values.cuda() for name, values in batch.items()}
    settings = {"do_sample": False, "max_new_tokens": 8, "cache_implementation": "offloaded", "eos_token_id": None}
    plain = model.generate(**batch, **settings)[:, -8:].tolist()
    pools, path = draw(model, batch, 2, **settings)
    assert path == "repeated" and pools == [[response] * 2 for response in plain]


# peft says so for plain `generate` as well.
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
def test_virtual_tokens_are_the_reason():
    model = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        wrapped = peft.get_peft_model(model, config).eval()
    reasons = []

    def decode(model, input_ids, **prepared):
        with torch.no_grad():
            reasons.append(decoders.make_decoder(DecodingCall.of(model, input_ids, **prepared)).path_reason)
        return input_ids

    wrapped.generate(**left_padded_batch([7, 5]), custom_generate=decode, max_new_tokens=3)
    assert "peft puts virtual tokens before the prompt" in reasons[0]


def test_every_encoder_decoder_has_its_reason():
    assert {architecture for architecture in ENCODER_DECODER if architecture in REASONS} == set(ENCODER_DECODER)
