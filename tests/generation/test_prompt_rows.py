"""
Test that the prompts a reward sees belong to the policy's rows, through real pipelines, which pass the same keywords
with each batch.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, TextGenerationPipeline, pipeline

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
@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_each_chat_of_a_pipeline_is_scored_against_its_own_prompt(generator, batch_size):
    """Every chat's winner has the reward of its own prompt, also in a last batch that is not full."""
    reward, chats = PromptBoundReward(), [FIRST, SECOND, LONGER]
    results = run(generator, chats, chats, reward, batch_size=batch_size)
    drawn = {str(prompt): [] for prompt in chats}
    for prompts, completions in reward.calls:
        for prompt, completion in zip(prompts, completions, strict=True):
            drawn[str(prompt)].append(reward.reward(prompt, completion))
    for chat, [result] in zip(chats, results, strict=True):
        assert len(drawn[str(chat)]) == 3
        assert reward.reward(chat, [result["generated_text"][-1]]) == max(drawn[str(chat)])


@pytest.mark.uses_global_rng
def test_columns_of_a_pipeline_follow_their_inputs(generator):
    seen = []

    def reward(prompts, completions, solution, **kwargs):
        seen.extend(zip(prompts, solution, strict=True))
        return [float(len(completion)) for completion in completions]

    texts = ["how hot is it", "make cold milk", "what is salt"]
    run(generator, texts, texts, reward, batch_size=2, reward_kwargs={"solution": [1, 2, 3]})
    assert set(seen) == set(zip(texts, [1, 2, 3], strict=True)) and len(seen) == 9
    # A stream has no length that could be compared before.
    list(run(generator, (text for text in texts), texts, reward, reward_kwargs={"solution": [1, 2, 3]}))
    assert set(seen) == set(zip(texts, [1, 2, 3], strict=True)) and len(seen) == 18
    with pytest.raises(ArgumentError, match=r"`reward_kwargs\['solution'\]` must hold .*3.* got 2"):
        run(generator, texts, texts, reward, reward_kwargs={"solution": [1, 2]})


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "prompts"),
    [(["how", "so"], ["how"]), ([FIRST, SECOND], [FIRST]), (FIRST, [FIRST, SECOND]), ("how", ["how", "so"])],
)
def test_as_many_prompts_as_inputs_or_no_token(generator, inputs, prompts, batch_size):
    forwards = []
    hook = generator.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    with pytest.raises(ArgumentError, match=rf"one entry per input of the pipeline .*got {len(prompts)}"):
        run(generator, inputs, prompts, batch_size=batch_size)
    hook.remove()
    assert not forwards


@pytest.mark.uses_global_rng
def test_stream_with_too_few_prompts_is_refused_where_they_end(generator):
    with pytest.raises(ArgumentError, match="more than 1"):
        list(run(generator, (chat for chat in [FIRST, SECOND]), [FIRST]))


def test_pipeline_is_wrapped_once_and_restored():
    """Also after `disable`, with which transformers' own call is back."""
    import hf_itp

    ours = TextGenerationPipeline.__call__
    hf_itp.enable()
    assert TextGenerationPipeline.__call__ is ours
    hf_itp.disable()
    try:
        assert TextGenerationPipeline.__call__ is ours.__wrapped__
    finally:
        hf_itp.enable()


# A list of inputs goes through a data loader, which draws a seed.
@pytest.mark.uses_global_rng
@pytest.mark.parametrize(
    ("chats", "prompts", "batch_size"),
    [([SECOND, FIRST], [FIRST, SECOND], 1), ([SECOND, FIRST], [FIRST, SECOND], 2)],
)
def test_chat_scored_against_another_is_said(generator, chats, prompts, batch_size):
    with pytest.warns(ItpWarning, match=OTHERS) as caught:
        run(generator, chats, prompts, batch_size=batch_size)
    assert len([warning for warning in caught if OTHERS in str(warning.message)]) == 2 // batch_size


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
