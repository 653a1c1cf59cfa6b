"""Test the fixtures: every tiny model generates, looks at its prompt and ends some responses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.global_rng import global_rng_watched
from tests.tiny import (
    ARCHITECTURES,
    DECODER_ONLY,
    ENCODER_DECODER,
    EOS,
    LEFT_PADDING_MATTERS,
    PAD,
    VISION_LANGUAGE,
    VOCABULARY_SIZE,
    PromptBoundReward,
    left_padded_batch,
    tiny_model,
    tiny_tokenizer,
    vision_batch,
)

LENGTHS = [8, 9, 12, 10, 8, 9, 10, 11]
NEW_TOKENS = 20


def inputs_for(architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    if architecture in VISION_LANGUAGE:
        return vision_batch(architecture, LENGTHS, seed)
    return left_padded_batch(LENGTHS, seed)


def responses(sequences: torch.Tensor, is_encoder_decoder: bool) -> torch.Tensor:
    return sequences[:, 1 if is_encoder_decoder else max(LENGTHS) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_varies_and_its_entropy_is_moderate(architecture: str) -> None:
    model = tiny_model(architecture)
    output = model.generate(
        **inputs_for(architecture),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(output.logits).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean().item()
    assert 0.5 < entropy < 2.5
    rows = [set(row.tolist()) - {PAD, EOS} for row in responses(output.sequences, model.config.is_encoder_decoder)]
    assert sum(len(row) > 1 for row in rows) >= len(rows) / 2
    assert len(set.union(*rows)) >= 8


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_some_samples_end_early_and_some_do_not(architecture: str) -> None:
    model = tiny_model(architecture)
    torch.manual_seed(0)
    sequences = model.generate(
        **inputs_for(architecture), max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, num_return_sequences=8
    )
    ended = (responses(sequences, model.config.is_encoder_decoder) == EOS).any(-1)
    assert 0 < ended.sum() < len(ended)
    assert len(set(map(tuple, sequences.tolist()))) > len(ended) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_token_depends_on_the_token_before_the_last(architecture: str) -> None:
    model = tiny_model(architecture)
    inputs = inputs_for(architecture)
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][:, -2] = (other["input_ids"][:, -2] + 1).clamp(max=59)
    first, second = (
        model.generate(**each, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        for each in (inputs, other)
    )
    assert (first - second).abs().amax(-1).median() > 0.05


@pytest.mark.parametrize("architecture", [*DECODER_ONLY, *ENCODER_DECODER])
def test_padding_on_the_left_changes_logits_only_where_said(architecture: str) -> None:
    model = tiny_model(architecture)
    inputs = inputs_for(architecture)
    together = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    for row, length in enumerate(LENGTHS[:3]):
        alone = model.generate(
            input_ids=inputs["input_ids"][row : row + 1, -length:],
            attention_mask=inputs["attention_mask"][row : row + 1, -length:],
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        difference = (alone.logits[0][0] - together.logits[0][row]).abs().max()
        padded = length < max(LENGTHS)
        assert (difference > 1e-4) == (padded and architecture in LEFT_PADDING_MATTERS)


@pytest.mark.parametrize("architecture", sorted(VISION_LANGUAGE))
def test_picture_reaches_the_logits(architecture: str) -> None:
    model = tiny_model(architecture)
    inputs = inputs_for(architecture)
    other = dict(inputs, pixel_values=-inputs["pixel_values"])
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits[:, -1], model(**other).logits[:, -1], atol=1e-3)


def test_every_caller_gets_an_equal_model_of_its_own() -> None:
    first, second = tiny_model("llama"), tiny_model("llama")
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    with torch.no_grad():
        first.lm_head.weight.zero_()
    assert not torch.equal(first.lm_head.weight, tiny_model("llama").lm_head.weight)
    assert not torch.equal(tiny_model("llama", seed=1).lm_head.weight, second.lm_head.weight)


@pytest.mark.parametrize(
    ("architecture", "auto_class"), [("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)]
)
def test_saved_policy_loads_as_it_was(policy_folder, architecture: str, auto_class: type) -> None:
    path: Path = policy_folder(architecture)
    model, tokenizer = auto_class.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    inputs = left_padded_batch([5, 7])
    expected = tiny_model(architecture).generate(**inputs, max_new_tokens=5)
    assert torch.equal(model.eval().generate(**inputs, max_new_tokens=5), expected)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == EOS
    assert tokenizer.padding_side == "left"


def test_tokenizer_has_one_word_per_id_and_renders_chats() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCABULARY_SIZE
    words = tokenizer.decode(range(7, 60))
    assert tokenizer(words).input_ids == list(range(7, 60))
    chat = [{"role": "user", "content": "how do you bake bread"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<s>", "user", "how", "do", "you", "bake", "bread", "</s>"),
        *("<s>", "assistant"),
    ]
    assert tokenizer(["a", "a jar of salt"], padding=True).attention_mask == [[0, 0, 0, 1], [1, 1, 1, 1]]


def test_batch_is_padded_on_the_left() -> None:
    batch = left_padded_batch([2, 4], seed=3)
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert ((batch["input_ids"] == PAD) == (batch["attention_mask"] == 0)).all()


def test_prompt_bound_reward_tells_every_pair_apart(prompt_bound_reward: PromptBoundReward) -> None:
    prompts = ["a", "a", "b", [{"role": "user", "content": "a"}]]
    rewards = prompt_bound_reward(prompts=prompts, completions=["x", "y", "x", "x"], extra=1)
    assert len(set(rewards)) == 4
    assert rewards[2] == PromptBoundReward.reward("b", "x")
    assert prompt_bound_reward.calls == [(prompts, ["x", "y", "x", "x"])]
    assert torch.tensor(rewards, dtype=torch.float32).tolist() == rewards


@pytest.mark.parametrize("touch", [lambda: torch.rand(1), lambda: torch.manual_seed(123)])
def test_moved_or_seeded_global_rng_is_noticed_and_put_back(touch) -> None:
    before = torch.get_rng_state()
    with pytest.raises(AssertionError, match=r"Draw from a torch\.Generator"), global_rng_watched():
        touch()
    assert torch.equal(torch.get_rng_state(), before)
