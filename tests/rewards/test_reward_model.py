"""Test rewards of whole models against float64 forwards of single responses, and that models stay unchanged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.utils import logging

from hf_itp.errors import ItpWarning
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import (
    DECODERS,
    ENCODERS,
    decoder_reward,
    encoder_reward,
    encoder_tokenizer,
    pair_tokenizer,
    plain_tokenizer,
    tiny_classifier,
)
from tests.tiny import EOS, tiny_tokenizer

pytestmark = pytest.mark.oldest

PROMPTS = ["how do i bake bread", "how do i bake bread", "see you", "is it hot out", "how do i bake bread"]
RESPONSES = ["use cold water and salt", "yes", "no " * 30 + "yes", "mix flour and water so it can rise", "so"]
RENDERED = [
    f"<s> user {p} </s> <s> assistant {r} </s>" for p, r in zip(PROMPTS, RESPONSES, strict=True)
]  # by hand what the tiny tokenizer's chat template writes


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoder_reward_is_head_at_last_token_of_rendered_chat(architecture):
    model = tiny_classifier(architecture)
    rewards = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    expected = [decoder_reward(model, text) for text in RENDERED]
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards.std() > 0.1


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoder_reward_is_logit_of_text_pair(architecture):
    model = tiny_classifier(architecture)
    rewards = RewardModel(model, encoder_tokenizer(architecture))(PROMPTS, RESPONSES)
    expected = [encoder_reward(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards.std() > 0.1


@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_batch_of_one_equals_batch_of_many(architecture):
    model = tiny_classifier(architecture)
    tokenizer = encoder_tokenizer(architecture) if architecture in ENCODERS else tiny_tokenizer()
    together = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    for options in ({"unbatched": True}, {"batch_size": 2}):
        apart = RewardModel(model, tokenizer, **options)(PROMPTS, RESPONSES)
        assert torch.allclose(together, apart, rtol=0, atol=1e-5)
    alone = torch.cat([RewardModel(model, tokenizer)([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)


def test_final_end_token_is_pooled_where_pad_equals_eos():
    model = tiny_classifier("llama", pad_token_id=EOS)
    tokenizer = plain_tokenizer(pad_token="</s>")
    reward = RewardModel(model, tokenizer, append_eos=True)(["how do i"], [" bake bread"]).item()
    ids = torch.tensor([tokenizer("how do i bake bread")["input_ids"] + [EOS]])
    assert reward == pytest.approx(decoder_reward(model, "<s> how do i bake bread </s>"), abs=1e-4)
    # The model's own forward reads the token before the end token.
    assert abs(reward - model(ids).logits.item()) > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_model_without_pad_token_scores_batches(architecture):
    model = tiny_classifier(architecture, pad_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    rewards = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    assert rewards.tolist() == pytest.approx([decoder_reward(model, text) for text in RENDERED], abs=1e-4)
    with pytest.raises(ValueError, match="batch sizes > 1"):
        model(torch.ones(2, 3, dtype=torch.long))


def test_pad_id_outside_vocabulary_is_not_used():
    model = tiny_classifier("llama")
    expected = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    model.config.pad_token_id = -1
    assert torch.equal(RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES), expected)


@pytest.mark.parametrize("architecture", ["llama", "bert", "deberta-v2", "roberta"])
def test_bfloat16_checkpoint_gets_float32_head(architecture):
    model = tiny_classifier(architecture)
    with torch.no_grad():
        head = model.score if architecture == "llama" else getattr(model.classifier, "out_proj", model.classifier)
        head.weight.mul_(8)
    model = model.bfloat16()
    tokenizer = tiny_tokenizer() if architecture == "llama" else pair_tokenizer()
    rewards = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    assert not torch.equal(rewards, rewards.bfloat16().float())
    # The caller's model keeps its type, and rewards are those of its own body.
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert rewards.tolist() == pytest.approx(RewardModel(model.float(), tokenizer)(PROMPTS, RESPONSES), abs=0.5)


def test_autocast_around_scoring_changes_nothing():
    model = tiny_classifier("llama")
    reward_model = RewardModel(model, tiny_tokenizer())
    expected = reward_model(PROMPTS, RESPONSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward_model(PROMPTS, RESPONSES), expected)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_training_mode_is_left_out_of_rewards_and_restored(architecture):
    dropout = {"attention_dropout": 0.5} if architecture == "llama" else {"hidden_dropout_prob": 0.5}
    model = tiny_classifier(architecture, **dropout)
    tokenizer = tiny_tokenizer() if architecture == "llama" else pair_tokenizer()
    expected = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    model.train()
    frozen = model.base_model.get_input_embeddings().eval()
    assert torch.equal(RewardModel(model, tokenizer)(PROMPTS, RESPONSES), expected)
    assert model.training and model.base_model.training and not frozen.training


def test_mode_is_restored_after_error():
    model = tiny_classifier("llama").train()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["pumpernickel"])
    with pytest.raises(ValueError, match="trained with"):
        RewardModel(model, tokenizer)(["how"], ["pumpernickel"])
    assert all(module.training for module in model.modules())


def test_threads_sharing_a_training_model_get_the_same_rewards():
    model = tiny_classifier("llama", attention_dropout=0.5)
    expected = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    model.train()

    def score(_):
        return RewardModel(model, tiny_tokenizer(), unbatched=True)(PROMPTS, RESPONSES)

    with ThreadPoolExecutor(max_workers=3) as threads:
        results = list(threads.map(score, range(30)))
    assert all(torch.allclose(rewards, expected, rtol=0, atol=1e-5) for rewards in results)
    assert model.training


def test_gradients_are_not_recorded_and_training_goes_on():
    model = tiny_classifier("llama")
    rewards = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    assert not rewards.requires_grad
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert model.score.weight.grad is not None


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_chosen_label_of_several_is_the_reward(architecture):
    model = tiny_classifier(architecture, num_labels=3, id2label={0: "rude", 1: "neutral", 2: "helpful"})
    tokenizer = tiny_tokenizer() if architecture == "llama" else pair_tokenizer()
    by_name = RewardModel(model, tokenizer, label="helpful")(PROMPTS, RESPONSES)
    if architecture == "llama":
        expected = [decoder_reward(model, text, label=2) for text in RENDERED]
    else:
        expected = [encoder_reward(model, *pair, label=2) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert by_name.tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(RewardModel(model, tokenizer, label=2)(PROMPTS, RESPONSES), by_name)


@pytest.mark.parametrize("problem_type", ["regression", "single_label_classification", "multi_label_classification"])
def test_reward_is_raw_logit_whatever_the_problem_type(problem_type):
    model = tiny_classifier("bert", num_labels=2, problem_type=problem_type)
    rewards = RewardModel(model, pair_tokenizer(), label=1)(PROMPTS, RESPONSES)
    expected = [encoder_reward(model, *pair, label=1) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)


def test_identical_pairs_are_scored_once():
    model = tiny_classifier("llama")
    rows = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rewards = RewardModel(model, tiny_tokenizer())(["how", "see", "how", "how"], ["yes", "yes", "no", "yes"])
    assert sum(rows) == 3
    assert rewards[0] == rewards[3] and len(set(rewards.tolist())) == 3


def test_out_of_memory_halves_the_batch_and_goes_on():
    model = tiny_classifier("llama")
    expected = RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    sizes = []

    def refuse_large_batches(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.register_forward_pre_hook(refuse_large_batches, with_kwargs=True)
    rewards = RewardModel(model, tiny_tokenizer(), batch_size=5)(PROMPTS, RESPONSES)
    assert sizes == [5, 2, 2, 1]
    assert torch.allclose(rewards, expected, rtol=0, atol=1e-5)


def test_long_prompt_is_cut_to_the_positions_the_model_has():
    model = tiny_classifier("bert", max_position_embeddings=16)
    with pytest.warns(ItpWarning, match="1 of 2 prompts were cut on the left to fit the reward model's 16 tokens"):
        rewards = RewardModel(model, pair_tokenizer())(["how " * 40 + "do i bake", "how"], ["use water", "yes"])
    # 16 tokens less three special ones and two of the response leave eleven of the prompt.
    assert rewards[0].item() == pytest.approx(encoder_reward(model, "how " * 8 + "do i bake", "use water"), abs=1e-4)


def test_roberta_positions_start_behind_the_padding_index():
    model = tiny_classifier("roberta", max_position_embeddings=20, pad_token_id=3)
    reward_model = RewardModel(model, encoder_tokenizer("roberta"))
    assert reward_model.max_length == 16
    with pytest.warns(ItpWarning, match="Raise `max_length` or pass shorter prompts"):
        reward = reward_model(["how " * 40], ["yes"])
    assert reward.item() == pytest.approx(encoder_reward(model, "how " * 12, "yes"), abs=1e-4)


def test_tokenizer_limit_counts_where_it_is_the_smaller_one():
    tokenizer = tiny_tokenizer()
    assert RewardModel(tiny_classifier("llama"), tokenizer).max_length == 256
    tokenizer.model_max_length = 100
    assert RewardModel(tiny_classifier("llama"), tokenizer).max_length == 100
    assert RewardModel(tiny_classifier("llama"), tokenizer, max_length=200).max_length == 200


def test_bar_shows_progress_only_where_asked_and_allowed(capsys):
    model = tiny_classifier("llama")
    RewardModel(model, tiny_tokenizer())(PROMPTS, RESPONSES)
    assert capsys.readouterr().err == ""
    RewardModel(model, tiny_tokenizer(), progress=True)(PROMPTS, RESPONSES)
    assert "5/5" in capsys.readouterr().err
    logging.disable_progress_bar()
    try:
        RewardModel(model, tiny_tokenizer(), progress=True)(PROMPTS, RESPONSES)
    finally:
        logging.enable_progress_bar()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_model_on_an_accelerator_returns_rewards_on_the_cpu(architecture):
    tokenizer = tiny_tokenizer() if architecture == "llama" else pair_tokenizer()
    expected = RewardModel(tiny_classifier(architecture), tokenizer)(PROMPTS, RESPONSES)
    rewards = RewardModel(tiny_classifier(architecture).cuda(), tokenizer)(PROMPTS, RESPONSES)
    assert rewards.device.type == "cpu"
    assert torch.allclose(rewards, expected, rtol=0, atol=1e-2)
