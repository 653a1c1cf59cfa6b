"""
Test that references and rollouts are drawn alike: at learning rate 0 the policy wins half of the time.

The bound: given the references, the logged win rate is a mean of `n` independent numbers in [0, 1]. By Hoeffding it
is more than `a` from its expectation with odds of at most 2 exp(-2 n a^2). The expectation is the mean over all `m`
references of the share of responses that beat each. Under one law these shares are uniform, or with ties below that in
convex order, so the expectation is more than `b` from 0.5 with odds of at most 2 exp(-6 m b^2) (the uniform law is
strictly subgaussian, of variance 1/12).
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_itp import CTRLArguments, CTRLTrainer
from tests.tiny import EOS, PAD, VOCABULARY_SIZE, tiny_tokenizer

# Numbers of rollouts, and of references per prompt.
ROLLOUTS, REFERENCES = 512, 256
TEXTS = ["how do you bake bread", "what is salt for"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
SYSTEM = [[{"role": "system", "content": "a good day"}, *chat] for chat in CHATS]
ODDS = 1e-6
WORDS = [10, 11, 12, 13, 14]
# Like the template of a model that thinks: the argument decides what the policy continues, here with its own words.
THINKING = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>"
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    + " ".join(tiny_tokenizer().convert_ids_to_tokens(WORDS[:3]))
    + "{% endif %}{% endif %}"
)
pytestmark = [
    pytest.mark.uses_global_rng,  # transformers' Trainer seeds it
]


def bound(rollouts: int, references: int, odds: float) -> float:
    """Return how far from 0.5 the win rate is at most, except with these odds, half of them for either part."""
    return math.sqrt(math.log(4 / odds) / (2 * rollouts)) + math.sqrt(math.log(4 / odds) / (6 * references))


def peaked_model() -> LlamaForCausalLM:
    """Return a model with nearly all mass on six words, one of them the end, so that words repeat."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=1, max_position_embeddings=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        # One direction is the same for every token; of that, about 4 reaches the head.
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[*WORDS, EOS], 0] = torch.tensor([1.5, 1.3, 1.1, 1.0, 0.9, 1.2])
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    numbers = count()

    def save(**settings: Any) -> str:
        folder = tmp_path_factory.mktemp(f"policy-{next(numbers)}")
        model = peaked_model()
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        if settings:
            model.generation_config._from_model_config = False
        model.save_pretrained(folder)
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def few_repeats(prompts: list, completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
    return [float(len(set(ids)) - len(ids)) + 1e-3 * sum(ids) / len(ids) for ids in completion_ids]


def length(prompts: list, completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def share_of_first_words(prompts: list, completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
    return [sum(word in WORDS[:2] for word in ids) / len(ids) for ids in completion_ids]


def at_learning_rate_zero(folder, output, prompts=TEXTS, reward=None, template=None, **overrides) -> CTRLTrainer:
    settings = {
        "num_reference": REFERENCES, "transform": "identity", "max_completion_length": 8, "max_steps": 1,
        "per_device_train_batch_size": ROLLOUTS, "num_generations": ROLLOUTS // 2, "learning_rate": 0.0,
        "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "shuffle_dataset": False,
    }  # fmt: skip
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward or few_repeats,
        CTRLArguments(str(output), **(settings | overrides)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


# Settings of the checkpoint, of the trainer, and others, each with a reward that differs between the laws with and
# without the setting.
SETTINGS: dict[str, tuple[dict, dict, dict]] = {
    "plain": ({}, {}, {}),
    "temperature": ({}, {"temperature": 0.5}, {}),
    "temperature of the checkpoint": ({"temperature": 0.3, "do_sample": True}, {}, {}),
    "top_p": ({}, {"top_p": 0.6}, {}),
    "top_k": ({}, {"top_k": 2}, {}),
    "top_k of the checkpoint": ({"top_k": 2, "do_sample": True}, {}, {}),
    "min_p": ({}, {"min_p": 0.3}, {}),
    "min_p of the checkpoint": ({"min_p": 0.3, "do_sample": True}, {}, {}),
    "typical_p of the checkpoint": ({"typical_p": 0.5, "do_sample": True}, {}, {}),
    "repetition_penalty of the checkpoint": ({"repetition_penalty": 2.0}, {}, {}),
    "repetition_penalty": ({}, {"repetition_penalty": 2.0}, {}),
    "repetition_penalty of both": ({"repetition_penalty": 2.5}, {"repetition_penalty": 1.1}, {}),
    "no_repeat_ngram_size of the checkpoint": ({"no_repeat_ngram_size": 1}, {}, {}),
    "no_repeat_ngram_size": ({}, {"generation_kwargs": {"no_repeat_ngram_size": 1}}, {}),
    "min_new_tokens": ({}, {"generation_kwargs": {"min_new_tokens": 6}}, {"reward": length}),
    "min_new_tokens of the checkpoint": ({"min_new_tokens": 6}, {}, {"reward": length}),
    "suppress_tokens of the checkpoint": ({"suppress_tokens": WORDS[:2]}, {}, {}),
    "suppress_tokens": ({}, {"generation_kwargs": {"suppress_tokens": WORDS[:1]}}, {"reward": share_of_first_words}),
    "bad_words_ids": ({}, {"generation_kwargs": {"bad_words_ids": [[WORDS[0], WORDS[0]], [WORDS[1]]]}}, {}),
    "eos_token_id of the checkpoint": ({"eos_token_id": [EOS, WORDS[1]]}, {}, {"reward": length}),
    "eos_token_id": ({}, {"generation_kwargs": {"eos_token_id": WORDS[0]}}, {"reward": length}),
    "forced_eos_token_id": ({"forced_eos_token_id": WORDS[3]}, {}, {}),
    "exponential_decay_length_penalty": (
        {},
        {"generation_kwargs": {"exponential_decay_length_penalty": (2, 1.5)}},
        {"reward": length},
    ),
    "chats": ({}, {}, {"prompts": CHATS}),
    "system prompts": ({}, {}, {"prompts": SYSTEM}),
    "enable_thinking": (
        {"repetition_penalty": 2.0},
        {"repetition_penalty": 2.0, "chat_template_kwargs": {"enable_thinking": False}},
        {"prompts": CHATS, "template": THINKING, "reward": share_of_first_words},
    ),
}
SLOW_PATHS = (
    "plain",
    "repetition_penalty of the checkpoint",
    "no_repeat_ngram_size",
    "eos_token_id",
    "enable_thinking",
)


@pytest.mark.parametrize(
    ("setting", "shared"),
    [(setting, True) for setting in SETTINGS] + [(setting, False) for setting in SLOW_PATHS],
)
def test_policy_that_learns_nothing_wins_half_the_time(checkpoint, tmp_path, setting, shared):
    own, overrides, rest = SETTINGS[setting]
    training = at_learning_rate_zero(checkpoint(**own), tmp_path, shared_prefix_rollouts=shared, **overrides, **rest)
    training.train()
    win_rate = training.state.log_history[0]["win_rate"]
    assert abs(win_rate - 0.5) <= bound(ROLLOUTS, 2 * REFERENCES, ODDS), win_rate
