"""
The other engine: transformers' continuous batching draws what our own loop draws, and says so where it cannot.
"""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import hf_itp
from hf_itp.errors import ArgumentError, ItpError, MissingDependencyError, UnsupportedModelError
from hf_itp.sampling import paged
from hf_itp.sampling.engines import reason_for_native
from hf_itp.sampling.paged import PagedSampler
from tests.sampling.drawing import draw
from tests.tiny import (
    DECODER_ONLY,
    PromptBoundReward,
    character_tokenizer,
    left_padded_batch,
    tiny_model,
    tiny_tokenizer,
    vision_batch,
)

# Everything else keeps states that are no pages, or attends in a way that reads none.
PAGED = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma3_text",
    "phi3",
    "cohere",
    "olmo2",
    "smollm3",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
]


def draw_paged(*arguments, **settings):
    return draw(*arguments, engine=PagedSampler, **settings)


def test_table_has_every_architecture_that_is_not_refused():
    for architecture in set(DECODER_ONLY) - set(PAGED):
        with pytest.raises(UnsupportedModelError, match="Pass engine='native'"):
            draw_paged(tiny_model(architecture), left_padded_batch([7]), 2)


@pytest.mark.parametrize("architecture", PAGED)
def test_pool_is_token_identical_to_our_own_loops(architecture):
    """Float32, prompts of mixed length and one of a single token, windows that slide and responses over two pages."""
    model, batch = tiny_model(architecture), left_padded_batch([7, 1, 40])
    pools, path = draw_paged(model, batch, 5, max_new_tokens=40, eos_token_id=[2, 9])
    assert path == "paged"
    assert pools == draw(model, batch, 5, max_new_tokens=40, eos_token_id=[2, 9])[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"eos_token_id": None},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
def test_settings_of_the_draw_are_honoured(settings):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    pools, _ = draw_paged(model, batch, 6, **settings)
    assert pools == draw(model, batch, 6, **settings)[0]
    if settings not in ({"eos_token_id": None},):
        assert pools != draw_paged(model, batch, 6)[0]


def test_greedy_response_is_plain_generates():
    model, batch = tiny_model("qwen2"), left_padded_batch([7])
    expected = model.generate(**batch, do_sample=False, max_new_tokens=12)[0, 7:].tolist()
    assert draw_paged(model, batch, 1, do_sample=False)[0] == [[expected]]


def test_seed_decides_and_neither_batch_nor_memory():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5, 9])
    together, _ = draw_paged(model, batch, 6, seed=3)
    assert draw_paged(model, batch, 6, seed=3, batch_size=2)[0] == together
    assert draw_paged(model, batch, 6, seed=4)[0] != together


def test_request_that_loses_its_pages_goes_on_where_it_was(monkeypatch):
    """Too few pages for all, so that some requests are thrown out half-way and run anew from what they had."""
    resets = []
    state = paged.ContinuousBatchingManager.__init__.__globals__["RequestState"]
    original = state.create_equivalent_initial_request

    def counted(self):
        resets.append(len(self.generated_tokens))
        return original(self)

    monkeypatch.setattr(state, "create_equivalent_initial_request", counted)
    monkeypatch.setattr(
        paged, "page_budget", lambda model, lengths: {"page_size": 4, "num_blocks": 24, "max_batch_tokens": 64}
    )
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    pools, _ = draw_paged(model, batch, 6, max_new_tokens=40, eos_token_id=None)
    assert any(resets), "no request was thrown out after its first token"
    assert pools == draw(model, batch, 6, max_new_tokens=40, eos_token_id=None)[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_is_left_as_it_was_and_serves_others_meanwhile(attention):
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    model.set_attn_implementation(attention)
    expected = draw(model, batch, 4, max_new_tokens=60)[0]
    before = dict(vars(model.config)), set(vars(model))
    results = {}
    threads = [
        threading.Thread(target=lambda: results.update(paged=draw_paged(model, batch, 4, max_new_tokens=60)[0])),
        threading.Thread(target=lambda: results.update(again=draw_paged(model, batch, 4, max_new_tokens=60)[0])),
        threading.Thread(target=lambda: results.update(native=draw(model, batch, 4, max_new_tokens=60)[0])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {"paged": expected, "again": expected, "native": expected}
    assert (dict(vars(model.config)), set(vars(model))) == before
    assert threading.active_count() == 1 or not any("_run_generation_loop" in t.name for t in threading.enumerate())


def test_manager_the_caller_keeps_on_the_model_is_not_used():
    model, batch = tiny_model("llama"), left_padded_batch([7])
    manager = model.init_continuous_batching()
    model._cached_continuous_batching_manager = manager
    assert draw_paged(model, batch, 3)[0] == draw(tiny_model("llama"), batch, 3)[0]
    assert model._cached_continuous_batching_manager is manager and not manager.is_running()


class LastToken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ({"typical_p": 0.5}, "TypicalLogitsWarper"),
        ({"max_time": 5.0}, "MaxTimeCriteria"),
        ({"stopping_criteria": StoppingCriteriaList([LastToken()])}, "LastToken"),
    ],
    ids=["penalty", "ngram", "typical", "time", "criterion"],
)
def test_what_continuous_batching_would_drop_is_refused_by_name(settings, named):
    with pytest.raises(ArgumentError, match=rf"{named}.*Pass engine='native'"):
        draw_paged(tiny_model("llama"), left_padded_batch([7]), 2, **settings)


def test_stop_strings_are_refused_by_name():
    tokenizer = character_tokenizer()
    with pytest.raises(ArgumentError, match=r"StopStringCriteria \(from `stop_strings`.*Pass engine='native'"):
        generate(engine="paged", stop_strings=["ab"], tokenizer=tokenizer)


def test_encoder_decoders_pictures_and_training_mode_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"it is an encoder-decoder. Pass engine='native'"):
        draw_paged(tiny_model("t5"), left_padded_batch([7]), 2)
    with pytest.raises(UnsupportedModelError, match=r"it takes more than text. Pass engine='native'"):
        draw_paged(tiny_model("llava"), vision_batch("llava", [9]), 2)
    with pytest.raises(ArgumentError, match=r"Call model.eval"):
        draw_paged(tiny_model("llama").train(), left_padded_batch([7]), 2)


def test_attention_that_pages_do_wrong_without_saying_so_is_found_by_trying():
    """Its modules cap the attention's logits; its configuration, the one place to read that from, no longer does."""
    model = tiny_model("gemma2")
    model.set_attn_implementation("eager")
    model.config.attn_logit_softcapping = None
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.01
    with pytest.raises(UnsupportedModelError, match=r"its logits are not the model's own. Pass engine='native'"):
        draw_paged(model, left_padded_batch([7]), 2)


def test_wrapped_forward_is_refused():
    model = tiny_model("llama")
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(UnsupportedModelError, match=r"its forward is wrapped.*Pass engine='native'"):
        draw_paged(model, left_padded_batch([7]), 2)


def test_request_that_fails_is_an_error_of_the_call():
    model = tiny_model("llama")

    def broken(module, arguments, output):
        if not hasattr(module, "calls"):
            module.calls = 0
        module.calls += 1
        if module.calls == 3:
            raise RuntimeError("the device fell off")

    draw_paged(model, left_padded_batch([7]), 3)
    # On the layer itself: a hook is shared by the views of a model.
    model.model.layers[0].mlp.register_forward_hook(broken)
    with pytest.raises(ItpError, match=r"the device fell off. Pass engine='native'"):
        draw_paged(model, left_padded_batch([7]), 3)


def generate(**arguments):
    return tiny_model("llama").generate(
        **left_padded_batch([7, 5]),
        strategy="best_of_n",
        reward_model=PromptBoundReward(),
        prompts=["one", "two"],
        num_candidates=4,
        seed=0,
        max_new_tokens=8,
        return_dict_in_generate=True,
        **{"tokenizer": tiny_tokenizer(), **arguments},
    )


def test_keyword_chooses_and_the_diagnostics_say_which_and_why():
    chosen = {engine: generate(engine=engine) for engine in ("auto", "native", "paged")}
    diagnostics = {engine: output.diagnostics for engine, output in chosen.items()}
    assert {engine: found["engine"] for engine, found in diagnostics.items()} == {
        "auto": "native",
        "native": "native",
        "paged": "paged",
    }
    assert diagnostics["paged"]["path"] == "paged" and diagnostics["native"]["path"] == "shared"
    assert "measured" in diagnostics["auto"]["engine_reason"] and "caller" in diagnostics["paged"]["engine_reason"]
    assert chosen["paged"].sequences.equal(chosen["native"].sequences)


def test_reason_for_our_own_loop_names_model_path_and_device():
    llama, mamba = tiny_model("llama"), tiny_model("mamba")
    assert reason_for_native("shared", llama, torch.device("cpu")) == (
        "a prompt's keys and values are kept once for all its candidates; measured to be faster than 'paged' on CPUs"
    )
    assert "faster on cuda devices is not measured" in reason_for_native("shared", llama, torch.device("cuda"))
    assert reason_for_native("expanded", mamba, torch.device("cuda")) == (
        "engine='paged' cannot run MambaForCausalLM: its layers (linear_attention) keep no pages"
    )


def test_another_transformers_still_has_our_own_loop(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.generation.continuous_batching.cb_logits_processors", None)
    monkeypatch.delitem(sys.modules, "hf_itp.sampling.paged")
    assert generate().diagnostics["engine"] == "native"
    with pytest.raises(MissingDependencyError, match=r"Install transformers==5.23.*, or pass engine='native'"):
        generate(engine="paged")


def test_unknown_engine_is_refused():
    with pytest.raises(ArgumentError, match=r"'native', 'paged', but is 'vllm'. Leave it out"):
        generate(engine="vllm")
    with pytest.raises(ArgumentError, match="Leave it out"):
        hf_itp.StrategyDecoding(hf_itp.get_strategy("best_of_n"), None, engine="pagd")
