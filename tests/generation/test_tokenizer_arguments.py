"""
Test stop strings and token healing, which need the tokenizer, against plain `generate`, wherever they are set.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import hf_itp
from hf_itp import embedded
from hf_itp.errors import ArgumentError
from hf_itp.generation.decoding import StrategyDecoding
from tests.tiny import PromptBoundReward, character_tokenizer, left_padded_batch, tiny_model, tiny_tokenizer

WHERE = ["keyword", "generation_config", "checkpoint"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(embedded.policy_path())
    tokenizer.padding_side = "left"
    return tokenizer


def policy_for(tokenizer):
    """Return a policy whose response differs for every prompt."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def policy(tokenizer):
    return policy_for(tokenizer)


def greedy(model, tokenizer, texts, **arguments):
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    return model.generate(**batch, max_new_tokens=4, do_sample=False, tokenizer=tokenizer, **arguments)


def aligned(texts, **arguments):
    return {
        "strategy": "best_of_n", "reward_model": PromptBoundReward(), "prompts": texts, "num_candidates": 1, "seed": 0,
        **arguments,
    }  # fmt: skip


@pytest.mark.parametrize(
    "texts", [["The link is https:"], ["The link is https: "], ["The link is https:", "I lik"], ["h", "The link"]]
)
def test_healed_prompt_is_continued_as_plain_generate_does(policy, tokenizer, texts):
    plain = greedy(policy, tokenizer, texts, token_healing=True)
    unhealed = greedy(policy, tokenizer, texts)
    ours = greedy(policy, tokenizer, texts, token_healing=True, **aligned(texts))
    assert ours.equal(plain)
    assert not ours.equal(unhealed), "nothing was healed, so nothing is shown"


def test_rows_that_healing_makes_shorter_are_those_of_calls_alone(policy, tokenizer):
    """Plain `generate` keeps the padding of the unhealed rows, which then hides a word."""
    texts = ["The link is https:   ", "I like it. Wh"]
    together = greedy(policy, tokenizer, texts, token_healing=True, **aligned(texts))
    for row, text in enumerate(texts):
        alone = greedy(policy, tokenizer, [text], token_healing=True)
        assert together[row].tolist()[-alone.shape[1] :] == alone[0].tolist()


@pytest.mark.parametrize("where", WHERE)
def test_healing_counts_wherever_it_is_set_and_leaves_the_model_alone(tokenizer, policy, where):
    texts = ["The link is https:"]
    batch = tokenizer(texts, return_tensors="pt")
    expected = greedy(policy, tokenizer, texts, token_healing=True)
    model, arguments = policy_for(tokenizer), {"max_new_tokens": 4, "do_sample": False}
    config = GenerationConfig(**arguments, token_healing=True)
    if where == "keyword":
        arguments["token_healing"] = True
    elif where == "generation_config":
        arguments = {"generation_config": config}
    else:
        # Plain `generate` of such a checkpoint cannot heal: it heals the prompt of the healing token, without end.
        model.generation_config.token_healing = True
        model.generation_config.stop_strings = ["never written"]
    before = model.generation_config.to_dict()
    ours = model.generate(**batch, tokenizer=tokenizer, **aligned(texts), **arguments)
    assert ours.equal(expected)
    assert model.generation_config.to_dict() == before and config.token_healing is True


def test_healed_prompt_is_what_the_reward_reads_and_what_names_the_stream(policy, tokenizer):
    batch = tokenizer(["The link is https:"], return_tensors="pt")
    reward = PromptBoundReward()
    arguments = aligned(None, reward_model=reward, num_candidates=4, max_new_tokens=5, return_dict_in_generate=True)
    with pytest.warns(hf_itp.ItpWarning, match="was not given"):
        healed = policy.generate(**batch, tokenizer=tokenizer, token_healing=True, **arguments)
    [(prompts, _)] = reward.calls
    start = healed.sequences[:, : batch["input_ids"].shape[1]]
    assert set(prompts) == {tokenizer.decode(start[0])} and not start.equal(batch["input_ids"])
    with pytest.warns(hf_itp.ItpWarning, match="was not given"):
        by_hand = policy.generate(input_ids=start, tokenizer=tokenizer, **arguments)
    assert by_hand.sequences.equal(healed.sequences)
    assert all(map(torch.equal, by_hand.candidates[0], healed.candidates[0]))


def test_sampling_default_of_a_checkpoint_does_not_draw_the_prompt(tokenizer):
    """One seed gives one result, and torch's global numbers do not move (every test watches them)."""
    model = policy_for(tokenizer)
    model.generation_config.do_sample = True
    batch, texts = tokenizer(["The link is https:"], return_tensors="pt"), ["q"]
    runs = [
        model.generate(**batch, max_new_tokens=4, tokenizer=tokenizer, token_healing=True, **aligned(texts))
        for _ in range(2)
    ]
    assert runs[0].equal(runs[1])


def test_decoding_object_heals_and_stops_as_the_keyword_does(policy, tokenizer):
    texts = ["The link is https:"]
    decoding = StrategyDecoding("best_of_n", PromptBoundReward(), num_candidates=1, prompts=texts, seed=0)
    for arguments in ({"token_healing": True}, {"stop_strings": ["t", "e"]}):
        plain = greedy(policy, tokenizer, texts, **arguments)
        assert greedy(policy, tokenizer, texts, custom_generate=decoding, **arguments).equal(plain)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"input_ids": None, "attention_mask": None, "inputs_embeds": torch.zeros(1, 3, 32)}, "token_healing=False"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "padding_side='left'"),
        ({"tokenizer": character_tokenizer()}, r"Set tokenizer\.bos_token"),
    ],
)
def test_what_cannot_be_healed_is_refused_with_the_true_reason(overrides, remedy):
    arguments = {
        "input_ids": torch.tensor([[1, 5, 6]]), "token_healing": True, "tokenizer": tiny_tokenizer(), **aligned(["q"]),
        **overrides,
    }  # fmt: skip
    with pytest.raises(ArgumentError, match=remedy):
        tiny_model("llama").generate(**{name: value for name, value in arguments.items() if value is not None})


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("other", ["nothing", "generation_config"])
def test_stop_strings_count_wherever_they_are_set(where, other):
    """Greedy, so that plain `generate` gives the right result."""
    model, tokenizer, batch = tiny_model("llama"), character_tokenizer(), left_padded_batch([7])
    free = model.generate(**batch, max_new_tokens=12, do_sample=False)
    stop = tokenizer.decode(free[0, 9:11])
    plain = model.generate(**batch, max_new_tokens=12, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    assert plain.shape[1] < free.shape[1]
    arguments = {"max_new_tokens": 12, "do_sample": False}
    if where == "checkpoint":
        model.generation_config.stop_strings = [stop]
    elif where == "keyword":
        arguments["stop_strings"] = [stop]
    if where == "generation_config":
        arguments = {"generation_config": GenerationConfig(**arguments, stop_strings=[stop])}
    elif other == "generation_config":
        keywords = {"stop_strings": arguments.pop("stop_strings")} if where == "keyword" else {}
        arguments = {"generation_config": GenerationConfig(**arguments), **keywords}
    before = model.generation_config.to_dict()
    assert model.generate(**batch, tokenizer=tokenizer, **aligned(["q"]), **arguments).equal(plain)
    assert model.generation_config.to_dict() == before


def test_keyword_goes_before_the_checkpoints_stop_strings():
    model, tokenizer, batch = tiny_model("llama"), character_tokenizer(), left_padded_batch([7])
    free = model.generate(**batch, max_new_tokens=12, do_sample=False)
    model.generation_config.stop_strings = [tokenizer.decode(free[0, 9:11])]
    arguments = {"max_new_tokens": 12, "do_sample": False, "tokenizer": tokenizer}
    assert model.generate(**batch, stop_strings=None, **aligned(["q"]), **arguments).equal(free)


def test_tokenizer_that_cannot_spell_is_refused_for_stop_strings():
    with pytest.raises(ArgumentError, match="stopping criterion of your own"):
        tiny_model("llama").generate(
            **left_padded_batch([7]), stop_strings=["x"], tokenizer=tiny_tokenizer(), **aligned(["q"])
        )
