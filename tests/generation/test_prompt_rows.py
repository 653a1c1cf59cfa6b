"""
Test prompts for the reward that do not belong to the policy's rows, through real pipelines, which pass the same
prompts with each batch.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from hf_itp import ItpWarning, embedded
from hf_itp.errors import ArgumentError
from hf_itp.generation.prompt_rows import warn_of_other_rows
from tests.tiny import PromptBoundReward, tiny_model, tiny_tokenizer

FIRST = [{"role": "user", "content": "how can I bake bread"}]
SECOND = [{"role": "system", "content": "you make it"}, {"role": "user", "content": "make cold milk"}]
LONGER = [*FIRST, {"role": "assistant", "content": "you can"}, {"role": "user", "content": "what is salt"}]
OTHERS = "`prompts` must belong to the input"


@pytest.fixture(scope="module")
def generator():
    return pipeline("text-generation", model=tiny_model("llama"), tokenizer=tiny_tokenizer())


def run(generator, chats, prompts, reward=None, **arguments):
    return generator(
        chats, prompts=prompts, reward_model=reward or PromptBoundReward(), strategy="best_of_n", num_candidates=3,
        seed=0, max_new_tokens=4, tokenizer=generator.tokenizer, **arguments,
    )  # fmt: skip


# A list of inputs goes through a data loader, which draws a seed.
@pytest.mark.uses_global_rng
def test_more_prompts_than_the_pipeline_passes_rows_are_refused_with_the_remedy(generator):
    with pytest.raises(ArgumentError, match=r"batch_size=len\(prompts\)"):
        run(generator, [FIRST, SECOND], [FIRST, SECOND])


# A list of inputs goes through a data loader, which draws a seed.
@pytest.mark.uses_global_rng
def test_batch_size_is_the_remedy(generator):
    """Every chat's winner has the reward of its own prompt."""
    reward = PromptBoundReward()
    results = run(generator, [FIRST, SECOND], [FIRST, SECOND], reward, batch_size=2)
    drawn = {str(prompt): [] for prompt in (FIRST, SECOND)}
    for prompts, completions in reward.calls:
        for prompt, completion in zip(prompts, completions, strict=True):
            drawn[str(prompt)].append(reward.reward(prompt, completion))
    for chat, [result] in zip((FIRST, SECOND), results, strict=True):
        assert len(drawn[str(chat)]) == 3
        assert reward.reward(chat, [result["generated_text"][-1]]) == max(drawn[str(chat)])


# A list of inputs goes through a data loader, which draws a seed.
@pytest.mark.uses_global_rng
@pytest.mark.parametrize(
    ("chats", "prompts", "batch_size"),
    [([FIRST, SECOND], [FIRST], 1), ([SECOND, FIRST], [FIRST, SECOND], 2)],
)
def test_chat_scored_against_another_is_said(generator, chats, prompts, batch_size):
    with pytest.warns(ItpWarning, match=OTHERS) as caught:
        run(generator, chats, prompts, batch_size=batch_size)
    assert len([warning for warning in caught if OTHERS in str(warning.message)]) == 1


@pytest.mark.parametrize(
    ("chat", "prompt"),
    [
        (FIRST, FIRST),
        (SECOND, SECOND),
        (SECOND, SECOND[1:]),
        (LONGER, LONGER),
        (LONGER, LONGER[-1:]),
        ([*FIRST, {"role": "assistant", "content": "you can"}], [*FIRST, {"role": "assistant", "content": "you can"}]),
        ([{"role": "user", "content": "Zebra\n  lion "}], [{"role": "user", "content": "Zebra\n  lion "}]),
        (FIRST, [{"role": "user", "content": [{"type": "text", "text": FIRST[0]["content"]}]}]),
        (FIRST, [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}]),
        (FIRST, "what it is about"),
    ],
)
def test_prompts_that_may_belong_pass_without_a_word(generator, chat, prompt):
    """In these tests every warning is an error."""
    if isinstance(prompt[0], dict) and isinstance(prompt[-1]["content"], list):
        # A function reads any content; only this module's own question is asked of it.
        ids = generator.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        warn_of_other_rows([prompt], [ids], generator.tokenizer)
    else:
        run(generator, chat, [prompt])


def test_long_chat_that_lost_its_beginning_is_no_other_chat():
    tokenizer = AutoTokenizer.from_pretrained(embedded.policy_path())
    chat = [{"role": "user", "content": "Why is the sky blue? " * 20 + "Say it in one word."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    other = [{"role": "user", "content": "Why is the sea wet? Say it in one sentence."}]
    warn_of_other_rows([chat], [ids[-20:]], tokenizer)
    with pytest.warns(ItpWarning, match=OTHERS):
        warn_of_other_rows([other], [ids[-20:]], tokenizer)


def test_rows_that_are_no_chats_are_not_judged():
    ids = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0)).tolist()
    warn_of_other_rows([FIRST], ids, tiny_tokenizer())
