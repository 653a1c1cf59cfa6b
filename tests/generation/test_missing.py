"""
Test what is missing, empty or zero: an error names it before a token is drawn, and zero never means "not given".
"""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

import hf_itp
from hf_itp import ItpError, StrategyDecoding
from hf_itp.errors import ArgumentError
from hf_itp.generation.keywords import KEYWORDS
from hf_itp.rewards import RewardFunction
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer, vision_batch

CHAT = [{"role": "user", "content": "one"}]
VALUES = {
    "reward_model": PromptBoundReward(), "prompts": ["a"], "reward_kwargs": {"solution": ["b"]}, "num_candidates": 4,
    "seed": 0, "batch_size": 2, "progress": False, "early_rejection": 0.5, "shard": "prompts",
}  # fmt: skip


class Counted:
    def __init__(self, model):
        self.model, self.calls = model, 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *arguments):
        self.calls += 1


def aligned(**overrides):
    return {
        "strategy": "best_of_n", "reward_model": PromptBoundReward(), "prompts": [CHAT], "num_candidates": 4,
        "max_new_tokens": 3, "seed": 0, "tokenizer": tiny_tokenizer(), **overrides,
    }  # fmt: skip


@pytest.mark.parametrize("where", ["keyword", "generation_config", "checkpoint"])
def test_nothing_returned_is_no_default(where):
    policy, arguments = Counted(tiny_model("llama")), aligned()
    if where == "keyword":
        arguments["num_return_sequences"] = 0
    elif where == "generation_config":
        arguments["generation_config"] = GenerationConfig(max_new_tokens=3)
        arguments["generation_config"].num_return_sequences = 0
        del arguments["max_new_tokens"]
    else:
        policy.model.generation_config.num_return_sequences = 0
    with pytest.raises(ArgumentError, match=r"`num_return_sequences` must be an integer from 1 to .*, got 0"):
        policy.model.generate(**left_padded_batch([5]), **arguments)
    assert policy.calls == 0


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"num_candidates": 0}, "num_candidates"),
        ({"batch_size": 0}, "batch_size"),
        ({"strategy": "pessimism", "beta": 0}, "beta"),
        ({"strategy": ""}, "strategy"),
        ({"reward_model": ""}, "reward_model"),
        ({"reward_model": []}, "reward"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ""}, "prompts"),
        ({"early_rejection": False}, "early_rejection"),
        ({"shard": ""}, "shard"),
        ({"reward_kwargs": []}, "reward_kwargs"),
        ({"custom_generate": ""}, "custom_generate"),
    ],
)
def test_falsy_values_are_values(overrides, named):
    policy = Counted(tiny_model("llama"))
    with pytest.raises(ItpError, match=named):
        policy.model.generate(**left_padded_batch([5]), **aligned(**overrides))
    assert policy.calls == 0


def test_seed_of_zero_is_a_seed():
    """Without a seed torch's global numbers would move, which every test watches."""
    model = tiny_model("llama")
    runs = [model.generate(**left_padded_batch([5]), **aligned(seed=0)) for _ in range(2)]
    assert runs[0].equal(runs[1])


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_keyword_without_a_strategy_says_what_is_missing(name, explicit):
    policy = Counted(tiny_model("llama"))
    more = {"strategy": None} if explicit else {}
    with pytest.raises(ArgumentError, match=f"`{name}` must come with `strategy`.*Pass strategy="):
        policy.model.generate(**left_padded_batch([5]), max_new_tokens=2, **{name: VALUES[name]}, **more)
    assert policy.calls == 0


def test_keywords_that_are_none_are_not_given():
    model, batch = tiny_model("llama"), left_padded_batch([5])
    plain = model.generate(**batch, max_new_tokens=3)
    assert model.generate(**batch, max_new_tokens=3, **dict.fromkeys(KEYWORDS)).equal(plain)


class TakesSeed(type(tiny_model("llama"))):
    def prepare_inputs_for_generation(self, input_ids, seed=None, **kwargs):
        self.seeds.append(seed)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)


def test_keyword_the_model_knows_is_the_models():
    model = tiny_model("llama")
    model.__class__, model.seeds = TakesSeed, []
    model.generate(**left_padded_batch([5]), max_new_tokens=2, seed=7)
    assert set(model.seeds) == {7}
    with pytest.raises(ArgumentError, match="`prompts` must come with `strategy`"):
        model.generate(**left_padded_batch([5]), max_new_tokens=2, prompts=["a"])


def test_keyword_of_a_decoding_callable_is_its_own():
    seen = []

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, seed=None, **kwargs):
        seen.append(seed)
        return input_ids

    tiny_model("llama").generate(**left_padded_batch([5]), custom_generate=decode, seed=7, max_new_tokens=1)
    assert seen == [7]


@pytest.mark.parametrize("beside", [{}, {"attention_mask": torch.ones(1, 3, dtype=torch.long)}])
@pytest.mark.parametrize("by_object", [False, True])
def test_without_an_input_there_is_nothing_to_continue(beside, by_object):
    policy = Counted(tiny_model("llama"))
    if by_object:
        decoding = StrategyDecoding(
            "best_of_n", PromptBoundReward(), prompts=[CHAT], seed=0, tokenizer=tiny_tokenizer()
        )
        arguments = {"custom_generate": decoding, "do_sample": True, "top_k": 0, "max_new_tokens": 3}
    else:
        arguments = aligned()
    with pytest.raises(ArgumentError, match=r"`input_ids` must be given.*apply_chat_template"):
        policy.model.generate(**beside, **arguments)
    assert policy.calls == 0


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": torch.zeros(1, 0, dtype=torch.long)},
        {"inputs": torch.zeros(2, 0, dtype=torch.long)},
        {"input_ids": torch.zeros(0, 5, dtype=torch.long)},
        {"inputs_embeds": torch.zeros(1, 0, 32)},
        {"inputs_embeds": torch.zeros(0, 4, 32)},
        {"input_ids": torch.zeros(0, 4, dtype=torch.long), "attention_mask": torch.zeros(0, 4, dtype=torch.long)},
    ],
    ids=str,
)
def test_empty_input_is_nothing_to_continue(inputs):
    policy = Counted(tiny_model("llama"))
    with pytest.raises(ArgumentError, match="must hold at least one row of one token"):
        policy.model.generate(**inputs, **aligned())
    assert policy.calls == 0


def test_every_kind_of_input_is_one():
    model, ids = tiny_model("llama"), left_padded_batch([5])["input_ids"]
    expected = model.generate(ids, **aligned())
    assert model.generate(inputs=ids, **aligned()).equal(expected)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(ids).detach(), **aligned())
    assert embedded.shape[1] == 3
    encoder_decoder = tiny_model("t5")
    outputs = encoder_decoder.get_encoder()(input_ids=ids)
    assert len(encoder_decoder.generate(encoder_outputs=outputs, **aligned())) == 1
    assert len(tiny_model("llava").generate(**vision_batch("llava", [9]), **aligned())) == 1


@pytest.mark.parametrize("strategy", ["best_of_n", "pessimism", hf_itp.get_strategy("top_quantile", multiplier=2)])
@pytest.mark.parametrize("kind", ["callable", "object", "list"])
def test_decoding_object_takes_what_the_keywords_take(strategy, kind):
    reward = {"callable": PromptBoundReward(), "list": [PromptBoundReward()] * 2}.get(kind)
    reward = reward or hf_itp.rewards.as_reward_function(PromptBoundReward())
    decoding = StrategyDecoding(strategy, reward, num_candidates=4, prompts=[CHAT], seed=0, tokenizer=tiny_tokenizer())
    model, batch = tiny_model("llama"), left_padded_batch([5])
    by_object = model.generate(**batch, custom_generate=decoding, do_sample=True, top_k=0, max_new_tokens=3)
    by_keyword = model.generate(**batch, **aligned(strategy=strategy, reward_model=reward))
    assert by_object.equal(by_keyword)
    assert isinstance(decoding.strategy, hf_itp.Strategy) and not isinstance(decoding.strategy, str)


def test_decoding_object_takes_a_models_name(tmp_path):
    from tests.rewards.classifiers import tiny_classifier

    tiny_classifier("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    decoding = StrategyDecoding(
        "best_of_n", str(tmp_path), num_candidates=4, prompts=["one"], seed=0, tokenizer=tiny_tokenizer()
    )
    model, batch = tiny_model("llama"), left_padded_batch([5])
    by_object = model.generate(**batch, custom_generate=decoding, do_sample=True, top_k=0, max_new_tokens=3)
    by_keyword = model.generate(**batch, **aligned(prompts=["one"], reward_model=tmp_path))
    assert by_object.equal(by_keyword)


@pytest.mark.parametrize(
    ("strategy", "reward", "remedy"),
    [
        ("best_of_m", PromptBoundReward(), "Did you mean 'best_of_n'"),
        ("top_quantile", PromptBoundReward(), "Pass multiplier="),
        (3, PromptBoundReward(), "Pass one of: best_of_n"),
        (None, PromptBoundReward(), "Pass one of: best_of_n"),
        ("best_of_n", None, "Hub id"),
        ("best_of_n", 3, "Hub id"),
        ("best_of_n", "", "Hub id"),
        ("best_of_n", [], "at least one|Pass a reward model"),
        ("best_of_n", ["embedded", 3], "Hub id"),
        ("best_of_n", RewardFunction, "Hub id"),
    ],
)
def test_decoding_object_refuses_the_rest_when_it_is_made(strategy, reward, remedy):
    with pytest.raises(ItpError, match=remedy):
        StrategyDecoding(strategy, reward)


def test_without_a_strategy_generate_calls_the_original_with_the_same_arguments(monkeypatch):
    """The call itself passes through unchanged."""
    calls = []
    generate = hf_itp.generation.patching._with_strategy(lambda self, *args, **kwargs: calls.append((args, kwargs)))
    assert GenerationMixin.generate is not generate
    ids = torch.tensor([[1]])
    generate(tiny_model("llama"), ids, max_new_tokens=3, foo=1)
    assert calls == [((ids,), {"max_new_tokens": 3, "foo": 1})]
