"""
Test that bad input raises our error, with its remedy and a builtin's type, before any token is drawn.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    TextStreamer,
)

import hf_itp
from hf_itp import ItpError
from hf_itp.models.host_names import cache_argument
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest


class Overridden(type(tiny_model("llama"))):
    def generate(self, *args, **kwargs):
        return super().generate(*args, **kwargs)


class OwnLoop(type(tiny_model("llama"))):
    def _sample(self, *args, **kwargs):
        return super()._sample(*args, **kwargs)


class Speaks(type(tiny_model("llama"))):
    output_modalities = ("audio",)


def filled_cache(architecture="llama"):
    """Return a filled cache, under the name by which the model takes it."""
    model = tiny_model(architecture)
    name, cache = cache_argument(model.forward), DynamicCache(config=model.config)
    model(torch.tensor([[1, 5, 6]] * 3), use_cache=True, **{name: cache})
    return {name: cache}


def filled_encoder_decoder_cache():
    model, ids = tiny_model("t5"), torch.tensor([[1, 5, 6]] * 3)
    name, caches = cache_argument(model.forward), [DynamicCache(config=model.config) for _ in range(2)]
    cache = EncoderDecoderCache(*caches)
    model(input_ids=ids, decoder_input_ids=ids, use_cache=True, **{name: cache})
    return {name: cache}


def right_padded():
    batch = left_padded_batch([7, 5, 9])
    return {name: values.flip(-1) for name, values in batch.items()}


def returns(value):
    return lambda prompts, completions, **kwargs: [value] * len(completions)


def too_few(prompts, completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def fails(prompts, completions, **kwargs):
    raise KeyError("in the user's own code")


def config_with(**fields):
    config = GenerationConfig(max_new_tokens=3)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


CHAT = [{"role": "user", "content": "one"}]
# Arguments that replace those of a good call, the builtin that the error also is, and words of its remedy.
CASES = {
    "unknown strategy": ({"strategy": "pesimism"}, ValueError, "Did you mean 'pessimism'"),
    "strategy of another type": ({"strategy": 3}, TypeError, "Pass one of: best_of_n"),
    "strategy class": ({"strategy": hf_itp.Strategy}, TypeError, "Pass one of: best_of_n"),
    "auto without an entry": ({"strategy": "auto"}, ValueError, "Pass a strategy by name"),
    "misspelt field": ({"strategy": "pessimism", "betta": 0.1}, ValueError, "Did you mean `beta`"),
    "field of another strategy": ({"multiplier": 2.0}, ValueError, "Correct or remove the name"),
    "unknown keyword": ({"nonsense": 1}, ValueError, "Correct or remove the name"),
    "misspelt keyword": ({"num_candidate": 3}, ValueError, "Did you mean `num_candidates`"),
    "misspelt sampling keyword": ({"temprature": 3}, ValueError, "Did you mean `temperature`"),
    "field beside an object": ({"strategy": hf_itp.get_strategy("pessimism"), "beta": 1.0}, ValueError, "`beta`"),
    "shared name": (
        {"strategy": "soft_best_of_n", "temperature": 0.5},
        ValueError,
        "Pass strategy=hf_itp.get_strategy",
    ),
    "beta of zero": ({"strategy": "pessimism", "beta": 0.0}, ValueError, "positive, got 0.0. Pass e.g. beta=0.1."),
    "negative beta": ({"strategy": "pessimism", "beta": -1.0}, ValueError, "`beta` must be positive, got -1.0"),
    "infinite beta": ({"strategy": "pessimism", "beta": math.inf}, ValueError, "`beta` must be finite"),
    "beta that is no number": ({"strategy": "pessimism", "beta": "0.1"}, TypeError, "`beta` must be a number"),
    "unknown pool": ({"strategy": "pessimism", "beta": 0.1, "pool": "both"}, ValueError, "fresh"),
    "unknown normalization": ({"strategy": "pessimism", "normalize": "minmax"}, ValueError, "zscore"),
    "bound below the rewards": (
        {"strategy": "pessimism", "pool": "fresh", "beta": 0.01, "reward_bound": -5.0},
        ValueError,
        "`reward_bound`",
    ),
    "multiplier below one": ({"strategy": "top_quantile", "multiplier": 0.5}, ValueError, "`multiplier`"),
    "no reward model": ({"reward_model": None}, ValueError, "Pass a Hub id, a folder, a model or a function"),
    "reward model of another type": ({"reward_model": 3}, TypeError, "`reward_model`"),
    "empty ensemble": ({"reward_model": []}, ValueError, "Pass a reward model"),
    "no such reward model": ({"reward_model": "no/such-model"}, OSError, "no/such-model"),
    "NaN reward": ({"reward_model": returns(math.nan)}, ValueError, "Return a finite float for every response"),
    "infinite reward": ({"reward_model": returns(math.inf)}, ValueError, "Return a finite float for every response"),
    "None reward": ({"reward_model": returns(None)}, ValueError, "finite float"),
    "too few rewards": ({"reward_model": too_few}, ValueError, "Return one float per response"),
    "text as reward": ({"reward_model": returns("good")}, ValueError, "float"),
    "prompts as one string": ({"prompts": "one"}, TypeError, "Pass one string or one list"),
    "one bare chat": ({"prompts": CHAT}, TypeError, "wrapped once more"),
    "three bare messages": ({"prompts": CHAT * 3}, TypeError, "wrapped once more"),
    "too few prompts": ({"prompts": ["a", "b"]}, ValueError, "one prompt per input row"),
    "prompt that is a number": ({"prompts": ["a", "b", 3]}, TypeError, "must be a text or a chat"),
    "message without a role": ({"prompts": ["a", "b", [{"content": "c"}]]}, TypeError, "must be a text or a chat"),
    "empty chat": ({"prompts": ["a", "b", []]}, ValueError, "empty chat"),
    "no candidates": ({"num_candidates": 0}, ValueError, "Draw at least one candidate"),
    "half a candidate": ({"num_candidates": 2.5}, ValueError, "Draw at least one candidate"),
    "True candidates": ({"num_candidates": True}, ValueError, "Draw at least one candidate"),
    "more returned than drawn": ({"num_return_sequences": 9}, ValueError, "Draw more candidates or return fewer"),
    "negative seed": ({"seed": -1}, ValueError, "Pass e.g. seed=0"),
    "seed that is no integer": ({"seed": 0.5}, ValueError, "Pass e.g. seed=0"),
    "batch of nothing": ({"batch_size": 0}, ValueError, "free memory decide"),
    "beams": ({"num_beams": 4}, ValueError, "Remove `num_beams`"),
    "greedy candidates": ({"do_sample": False}, ValueError, "Pass do_sample=True"),
    "assistant": ({"assistant_model": tiny_model("llama")}, ValueError, "without an assistant"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, ValueError, "Remove `prompt_lookup_num_tokens`"),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, ValueError, "Remove `penalty_alpha`"),
    "DoLa": ({"dola_layers": "low"}, ValueError, "Remove `dola_layers`"),
    "static cache": ({"cache_implementation": "static"}, ValueError, "Remove `cache_implementation`"),
    "paged cache": ({"cache_implementation": "paged"}, ValueError, "Remove `cache_implementation`"),
    "filled cache": (filled_cache(), ValueError, "Pass the whole prompt instead"),
    "offloaded cache on a CPU": ({"cache_implementation": "offloaded"}, ValueError, "Remove `cache_implementation`"),
    "quantised cache": (
        {"cache_implementation": "quantized"},
        ValueError,
        "Remove",
    ),
    "per-step scores": (
        {"output_scores": True, "return_dict_in_generate": True},
        ValueError,
        "run the model once on the returned sequences",
    ),
    "own loop beside a strategy": ({"custom_generate": print}, ValueError, "Pass one of them"),
    "streamer for three": ({"streamer": TextStreamer(tiny_tokenizer())}, ValueError, "Pass one prompt"),
    "strategy in the config": (
        {"generation_config": config_with(num_candidates=3)},
        ValueError,
        "Pass num_candidates=",
    ),
    "embeddings without prompts": (
        {"input_ids": None, "attention_mask": None, "inputs_embeds": torch.zeros(3, 4, 32), "prompts": None},
        ValueError,
        "`prompts` must be given",
    ),
    "right padding": ({**right_padded()}, ValueError, "padding_side='left'"),
    "no tokenizer anywhere": ({"tokenizer": None}, OSError, "Pass tokenizer="),
}


class CountsForwards:
    """Policy that counts its forward passes."""

    def __init__(self, architecture="llama", cls=None):
        self.model = tiny_model(architecture)
        if cls is not None:
            self.model.__class__ = cls
        self.calls = 0
        self.model.register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.calls += 1


def good_call(**overrides):
    arguments = {
        **left_padded_batch([7, 5, 9]),
        "strategy": "best_of_n",
        "reward_model": PromptBoundReward(),
        "prompts": ["a", "b", "c"],
        "num_candidates": 4,
        "max_new_tokens": 3,
        "seed": 0,
        "tokenizer": tiny_tokenizer(),
    }
    return {name: value for name, value in (arguments | overrides).items() if value is not None}


# These errors can show only once something was scored.
AFTER_SAMPLING = {
    "NaN reward",
    "infinite reward",
    "None reward",
    "too few rewards",
    "text as reward",
    "bound below the rewards",
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_an_error_with_its_remedy(case):
    overrides, builtin, remedy = CASES[case]
    policy = CountsForwards()
    with pytest.raises(ItpError) as caught:
        policy.model.generate(**good_call(**overrides))
    assert isinstance(caught.value, builtin)
    assert remedy in str(caught.value)
    assert len(str(caught.value)) < 700
    if case not in AFTER_SAMPLING:
        assert policy.calls == 0, "nothing may be computed before the arguments are known to be right"


@pytest.mark.parametrize("architecture", ["mamba", "mamba2", "falcon_mamba", "jamba", "lfm2", "t5"])
def test_filled_cache_of_any_kind_is_refused(architecture):
    """Includes state-space caches, which have no length."""
    policy = CountsForwards(architecture)
    cache = filled_encoder_decoder_cache() if architecture == "t5" else filled_cache(architecture)
    with pytest.raises(ValueError, match="Pass the whole prompt instead") as caught:
        policy.model.generate(**good_call(**cache))
    assert isinstance(caught.value, ItpError) and policy.calls == 0


def test_good_call_is_good():
    """The table's cases are variants of this call, so none of them may fail for another reason."""
    assert tiny_model("llama").generate(**good_call()).shape[0] == 3


@pytest.mark.parametrize(
    ("cls", "remedy"), [(Overridden, "custom_generate="), (OwnLoop, "its own `generate`"), (Speaks, "generates text")]
)
def test_model_that_decodes_in_its_own_way_is_refused_by_name(cls, remedy):
    policy = CountsForwards(cls=cls)
    with pytest.raises(NotImplementedError, match=cls.__name__) as caught:
        policy.model.generate(**good_call())
    assert isinstance(caught.value, ItpError) and remedy in str(caught.value)
    assert policy.calls == 0


def test_thin_wrapper_works_by_the_way_the_error_names():
    from hf_itp.rewards import as_reward_function

    model = tiny_model("llama")
    expected = model.generate(**good_call())
    model.__class__ = Overridden
    decoding = hf_itp.StrategyDecoding(
        hf_itp.get_strategy("best_of_n"), as_reward_function(PromptBoundReward()), num_candidates=4,
        prompts=["a", "b", "c"], seed=0, tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    arguments = {"max_new_tokens": 3, "do_sample": True, "top_k": 0}
    assert model.generate(**left_padded_batch([7, 5, 9]), custom_generate=decoding, **arguments).equal(expected)


def test_error_in_the_users_reward_stays_visible():
    with pytest.raises(KeyError, match="in the user's own code"):
        tiny_model("llama").generate(**good_call(reward_model=fails))


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ({"strategy": "best_of_n", "surprise": 1}, "unknown keys: surprise"),
        ({"num_candidates": 3}, "a dict with a 'strategy'"),
        ("best_of_n", "a dict with a 'strategy'"),
        ({"strategy": "nonsense"}, "Unknown strategy"),
    ],
)
def test_broken_recommendation_is_an_error(entry, remedy):
    model = tiny_model("llama")
    model.generation_config.hf_itp = entry
    with pytest.raises(ItpError, match=remedy):
        model.generate(**good_call(strategy="auto"))


def test_recommendation_fills_what_the_caller_left_open(tmp_path):
    model = tiny_model("llama")
    model.generation_config.hf_itp = {"strategy": "pessimism", "beta": 0.05, "num_candidates": 4}
    expected = model.generate(**good_call(strategy="pessimism", beta=0.05))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(**good_call(strategy="auto", num_candidates=None)).equal(expected)
    greedier = loaded.generate(**good_call(strategy="auto", beta=0.3))
    assert greedier.equal(model.generate(**good_call(strategy="pessimism", beta=0.3)))
