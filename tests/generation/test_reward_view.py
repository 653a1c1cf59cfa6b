"""
Test `reward_view="final"` in `generate`: the reward reads what follows the thinking, and nothing else is selected.

A word ends the thinking here, as `</think>` does elsewhere, and the chat template begins it.
"""

from __future__ import annotations

import pytest
import torch

from hf_itp import EarlyRejection, Policy
from hf_itp.errors import ArgumentError
from hf_itp.generation.recommendation import decoding_entry, with_entry
from tests.tiny import EOS, tiny_model, tiny_tokenizer

CHATS = [[{"role": "user", "content": text}] for text in ("how do i bake bread", "what is salt")]
END = "then"
THINKS = (
    "{% for m in messages %}<s>{{ m.role }} {% if m.reasoning_content %}<unk> {{ m.reasoning_content }} then {% endif "
    "%}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant {% endif %}"
)


class Seen:
    """Reward that notes the texts it reads, and counts their letters."""

    def __init__(self):
        self.texts = []

    def __call__(self, prompts, completions, **kwargs):
        texts = [completion[0]["content"].split() for completion in completions]
        self.texts += texts
        return [float(sum(map(len, words))) + len(words) / 8 for words in texts]


def policy():
    """Return a policy whose declared thinking begins with its turn and ends with a word."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    tokenizer.response_template = {
        "start_anchor_pattern": r"(?=<s> assistant\s*\Z)",
        "fields": {"thinking": {"open": "<s> assistant", "close": END}, "content": {}},
    }
    model = tiny_model("llama", entropy=3.0)
    [word] = tokenizer(END)["input_ids"]
    with torch.no_grad():  # so that the word is drawn now and then
        model.lm_head.weight[word] = model.lm_head.weight[EOS]
    return Policy(model, tokenizer)


def generated(reward, **overrides):
    arguments = {
        "strategy": "best_of_n",
        "num_candidates": 32,
        "max_new_tokens": 16,
        "seed": 0,
        "reward_view": "final",
    }
    return policy().generate(CHATS, reward_model=reward, **(arguments | overrides))


def words_of(ids):
    return tiny_tokenizer().decode(ids, skip_special_tokens=True).split()


def final_words(ids):
    words = words_of(ids)
    return (words[words.index(END) + 1 :] or None) if END in words else None


@pytest.mark.parametrize("strategy", ["best_of_n", "pessimism"])
def test_reward_reads_the_final_part_and_what_has_none_is_never_selected(strategy):
    reward = Seen()
    output = generated(reward, strategy=strategy, **({"beta": 10.0} if strategy == "pessimism" else {}))
    expected = [[final_words(ids) for ids in pool] for pool in output.candidates]
    assert sorted(reward.texts) == sorted(words for pool in expected for words in pool if words is not None)
    there = torch.tensor([[words is not None for words in pool] for pool in expected])
    assert bool((~there).any()) and int(there.sum(dim=-1).min()) > 1
    assert output.candidate_rewards.isnan().equal(~there)
    assert output.diagnostics["no_reward"].equal((~there).sum(dim=-1))
    assert bool(there.gather(1, output.selected).all())
    assert float(output.probabilities[~there].sum()) == 0


def test_view_changes_nothing_of_what_is_drawn():
    full = Seen()
    whole, final = generated(full, reward_view="full"), generated(Seen())
    drawn = [[ids.tolist() for ids in pool] for pool in whole.candidates]
    assert drawn == [[ids.tolist() for ids in pool] for pool in final.candidates]
    assert sorted(full.texts) == sorted(words_of(ids) for pool in drawn for ids in pool)


def test_checkpoint_may_recommend_a_view_that_the_caller_overrides():
    entry = decoding_entry("best_of_n", 32, None, reward_view="final")
    assert entry["reward_view"] == "final" and "reward_view" not in decoding_entry("best_of_n", 16, None)
    recommending = policy()
    recommending.model.generation_config = with_entry(recommending.model.generation_config, entry)
    arguments = {"strategy": "auto", "max_new_tokens": 16, "seed": 0}
    recommended = recommending.generate(CHATS, reward_model=Seen(), **arguments)
    assert torch.allclose(recommended.candidate_rewards, generated(Seen()).candidate_rewards, equal_nan=True)
    overridden = recommending.generate(CHATS, reward_model=Seen(), reward_view="full", **arguments)
    assert not overridden.candidate_rewards.isnan().any()
    recommending.model.generation_config.hf_itp = {**entry, "reward_view": "end"}
    with pytest.raises(ArgumentError, match="names the reward view 'end'"):
        recommending.generate(CHATS, reward_model=Seen(), **arguments)


@pytest.mark.parametrize("early", [0.5, EarlyRejection(0.5)])
def test_early_rejection_cannot_judge_what_still_thinks(early):
    with pytest.raises(ArgumentError, match=r"`early_rejection` must be absent with reward_view='final'"):
        generated(Seen(), early_rejection=early)


def test_view_without_a_strategy_or_of_another_name_is_refused():
    with pytest.raises(ArgumentError, match="`reward_view` must be one of"):
        generated(Seen(), reward_view="ending")
    with pytest.raises(ArgumentError, match="`reward_view` must come with `strategy`"):
        policy().generate(CHATS, reward_view="final", max_new_tokens=2)
