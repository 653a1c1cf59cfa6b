"""
Test prompts that are run once against passes over every whole sequence.

The rewards are the same, the tokens fewer, and the model is left unchanged.
"""

from __future__ import annotations

import threading

import pytest
import torch

from hf_itp.errors import ItpWarning, RewardModelError
from hf_itp.rewards import RewardModel
from hf_itp.rewards.forward import passes, shared_prefix
from hf_itp.rewards.forward.scoring import label_logits
from hf_itp.rewards.text.encoding import TokenSequence
from tests.architectures import SLIDING_WINDOW, VOCABULARY_SIZE
from tests.rewards.classifiers import decoder_reward, tiny_classifier
from tests.tiny import EOS, tiny_tokenizer

pytestmark = pytest.mark.oldest

PACKED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "gpt2", "opt"),
    *("gpt_neox", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"),
)
WHOLE = ("falcon", "bloom", "jamba", "qwen3_next")


def words(count, seed):
    """Return `count` ids of words, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY_SIZE - 2, (count,), generator=generator).tolist())


def sequences_of(prompt_lengths, suffix_lengths=(1, 2, 3, 9, 33)):
    ids = [
        words(prompt, seed=prompt) + words(suffix, seed=1000 * prompt + suffix)
        for prompt in prompt_lengths
        for suffix in suffix_lengths
    ]
    return [TokenSequence(row, (0,) * len(row), (True,) * len(row)) for row in ids]


def whole_pass(model, sequences):
    with passes.evaluating(model):
        return passes.logits(model, sequences)[:, 0]


def tokens_run(model, score):
    """Return the result of `score()`, and the number of tokens it ran through the model's body, with padding."""
    counts = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        return score(), sum(counts)
    finally:
        hook.remove()


def assert_prefixes_run_once(model, sequences, num_tokens, tolerance=1e-4):
    label_logits(model, sequences)  # the first use of a model also tries it on a few tokens
    logits, count = tokens_run(model, lambda: label_logits(model, sequences))
    torch.testing.assert_close(logits, whole_pass(model, sequences), rtol=0, atol=tolerance)
    assert logits.std() > 0.05
    assert count == num_tokens


@pytest.mark.parametrize("architecture", PACKED)
def test_rewards_are_those_of_whole_sequences_and_each_prompt_is_run_once(architecture):
    """One call has three prompts of different lengths, and sliding windows leave the prompt behind."""
    assert SLIDING_WINDOW < 33
    sequences = sequences_of([40, 71, 50])
    assert_prefixes_run_once(tiny_classifier(architecture), sequences, 40 + 71 + 50 + 3 * (1 + 2 + 3 + 9 + 33))


@pytest.mark.parametrize("architecture", WHOLE)
def test_model_whose_tokens_meet_elsewhere_runs_whole_sequences(architecture):
    model, sequences = tiny_classifier(architecture), sequences_of([40])
    logits, count = tokens_run(model, lambda: label_logits(model, sequences))
    torch.testing.assert_close(logits, whole_pass(model, sequences), rtol=0, atol=1e-4)
    assert count >= 5 * 40 + (1 + 2 + 3 + 9 + 33)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("window", [1, 2, 39, 40, 41, 45, 72, 73, 200])
def test_window_ends_anywhere(architecture, window):
    model = tiny_classifier(architecture, sliding_window=window)
    assert_prefixes_run_once(model, sequences_of([40]), 40 + 1 + 2 + 3 + 9 + 33)


def test_window_of_one_token_leaves_nothing_of_the_prompt():
    model, sequences = tiny_classifier("mistral", sliding_window=1), sequences_of([40])
    logits = label_logits(model, sequences, batch_size=1)
    torch.testing.assert_close(logits, whole_pass(model, sequences), rtol=0, atol=1e-5)


def test_prompt_longer_than_a_block_of_queries():
    model = tiny_classifier("gemma2", max_position_embeddings=2048, sliding_window=300)
    assert_prefixes_run_once(model, sequences_of([1100], [1, 600, 30]), 1100 + 631)


def test_prompt_of_one_token_is_shared_by_many():
    ids = [(5, *words(1 + count % 7, seed=count)) for count in range(200)]
    distinct = [TokenSequence(row, (0,) * len(row), (True,) * len(row)) for row in dict.fromkeys(ids)]
    model = tiny_classifier("llama")
    torch.testing.assert_close(label_logits(model, distinct), whole_pass(model, distinct), rtol=0, atol=1e-4)


def test_one_response_and_short_prompts_are_run_whole():
    model = tiny_classifier("llama")
    for sequences in (sequences_of([100], [7]), sequences_of([6])):
        _, count = tokens_run(model, lambda rows=sequences: label_logits(model, rows))
        assert count >= sum(len(sequence.ids) for sequence in sequences)


def test_reward_is_the_same_whatever_is_scored_with_it():
    model, sequences = tiny_classifier("qwen2"), sequences_of([40, 71])
    together = label_logits(model, sequences)
    for batch_size in (1, 2, 3):
        torch.testing.assert_close(label_logits(model, sequences, batch_size=batch_size), together, rtol=0, atol=1e-5)
    alone = torch.cat([label_logits(model, [sequence]) for sequence in sequences])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    backwards = label_logits(model, sequences[::-1])
    torch.testing.assert_close(backwards.flip(0), together, rtol=0, atol=1e-5)


def test_batches_of_a_users_size_run_the_prompt_once_too():
    model, sequences = tiny_classifier("llama"), sequences_of([40])
    label_logits(model, sequences)
    _, count = tokens_run(model, lambda: label_logits(model, sequences, batch_size=2))
    assert count == 40 + 1 + 2 + 3 + 9 + 33


def test_out_of_memory_halves_the_responses_and_keeps_the_prompt():
    model, sequences = tiny_classifier("llama"), sequences_of([40])
    expected, sizes = label_logits(model, sequences), []

    def refuse_many_tokens(module, args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > 42:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.register_forward_pre_hook(refuse_many_tokens, with_kwargs=True)
    logits = label_logits(model, sequences, batch_size=5)
    assert sizes == [40, 48, 42, 5, 1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


PROMPTS = ["how do i bake bread " * 12, "is it hot out " * 15]
RESPONSES = ["use cold water and salt", "", "no " * 30 + "yes", "use cold water and salt", "so"]


@pytest.mark.parametrize("pad_id", [0, EOS, None])
def test_rendered_chats_with_an_empty_and_a_repeated_response(pad_id):
    model, tokenizer = tiny_classifier("llama", pad_token_id=pad_id), tiny_tokenizer()
    prompts, responses = [prompt for prompt in PROMPTS for _ in RESPONSES], RESPONSES * 2
    rewards = RewardModel(model, tokenizer)(prompts, responses)
    rendered = [f"<s> user {p} </s> <s> assistant {r} </s>" for p, r in zip(prompts, responses, strict=True)]
    assert rewards.tolist() == pytest.approx([decoder_reward(model, text) for text in rendered], abs=1e-4)
    assert rewards[0] == rewards[3]
    whole = RewardModel(model, tokenizer, unbatched=True)(prompts, responses)
    torch.testing.assert_close(rewards, whole, rtol=0, atol=1e-5)


def test_unbatched_scoring_shares_nothing():
    model = tiny_classifier("llama")
    reward_model = RewardModel(model, tiny_tokenizer(), unbatched=True)
    _, count = tokens_run(model, lambda: reward_model(PROMPTS[:1] * 3, ["yes", "no", "so"]))
    assert count == 3 * len(tiny_tokenizer()(f"<s>user {PROMPTS[0]}</s><s>assistant yes</s>")["input_ids"])


def test_prompts_cut_on_the_left_share_what_is_left_in_common():
    """The longest response leaves less of its prompt, so it begins elsewhere than the others."""
    model, tokenizer = tiny_classifier("llama"), tiny_tokenizer()
    responses = ["yes", "use cold water", "no " * 30]
    arguments = {"max_length": 66}
    with pytest.warns(ItpWarning, match="were cut on the left"):
        rewards = RewardModel(model, tokenizer, **arguments)(PROMPTS[1:] * 3, responses)
    with pytest.warns(ItpWarning, match="were cut on the left"):
        whole = RewardModel(model, tokenizer, unbatched=True, **arguments)(PROMPTS[1:] * 3, responses)
    torch.testing.assert_close(rewards, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_bfloat16_model_is_as_exact_as_its_own_pass(architecture):
    """On average over 15 rewards, errors against float32 are at most twice those of the whole pass in bfloat16."""
    model, sequences = tiny_classifier(architecture), sequences_of([40, 71, 50])
    exact = whole_pass(model, sequences)
    model = model.bfloat16()
    error = (label_logits(model, sequences) - exact).abs().mean()
    assert 0 < error <= 2 * (whole_pass(model, sequences) - exact).abs().mean()


def test_ids_the_model_does_not_know_are_refused():
    sequences = sequences_of([40])
    unknown = [sequence._replace(ids=(*sequence.ids[:-1], VOCABULARY_SIZE)) for sequence in sequences]
    with pytest.raises(RewardModelError, match=r"\(64\), got 64\. Pass the `tokenizer`"):
        label_logits(tiny_classifier("llama"), unknown)


def test_model_is_left_as_it_was():
    model, sequences = tiny_classifier("gemma2").train(), sequences_of([40])
    before = [(module, dict(vars(module))) for module in model.modules()]
    label_logits(model, sequences)
    assert all(vars(module) == contents for module, contents in before)
    assert model.config._attn_implementation == "eager"
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert model.score.weight.grad is not None


def test_plain_use_of_the_model_runs_undisturbed_beside_it():
    model, sequences = tiny_classifier("mistral"), sequences_of([40, 50])
    expected, ids = label_logits(model, sequences), torch.tensor([words(20, seed=0)])
    with torch.no_grad():
        plain = model(ids).logits
    results = {"plain": [], "shared": []}

    def use_plainly():
        with torch.no_grad():
            results["plain"].extend(model(ids).logits for _ in range(50))

    def score():
        results["shared"].extend(label_logits(model, sequences) for _ in range(5))

    threads = [threading.Thread(target=target) for target in (use_plainly, score, score)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results["plain"]) == 50 and all(logits.equal(plain) for logits in results["plain"])
    assert len(results["shared"]) == 10 and all(logits.equal(expected) for logits in results["shared"])


@pytest.mark.parametrize("change", ["instance forward", "own attention", "not causal", "cap that sdpa drops"])
def test_model_that_does_something_of_its_own_is_run_whole(change):
    model, sequences = tiny_classifier("gemma2" if "cap" in change else "llama"), sequences_of([40])
    if change == "instance forward":
        model.model.layers[0].forward = model.model.layers[0].forward
    elif change == "own attention":
        model.model.config._attn_implementation_internal = "a_users_own"
    elif change == "not causal":
        model.model.layers[1].self_attn.is_causal = False
    else:
        model.model.config._attn_implementation_internal = "sdpa"
    ids = torch.tensor(sequences[0].ids)
    with passes.evaluating(model):
        assert shared_prefix.packing_body(model, ids) is None


def test_model_changed_since_its_first_use_is_run_whole():
    model, sequences = tiny_classifier("llama"), sequences_of([40])
    label_logits(model, sequences)
    model.model.layers[1].self_attn.is_causal = False
    torch.testing.assert_close(label_logits(model, sequences), whole_pass(model, sequences), rtol=0, atol=1e-5)


def test_model_that_counts_positions_along_the_batch_is_found_out():
    model, sequences = tiny_classifier("llama"), sequences_of([40])

    def count_along(module, args, kwargs):
        length = kwargs["input_ids"].shape[1]
        return args, kwargs | {"position_ids": torch.arange(length)[None].expand(kwargs["input_ids"].shape)}

    model.model.register_forward_pre_hook(count_along, with_kwargs=True)
    torch.testing.assert_close(label_logits(model, sequences), whole_pass(model, sequences), rtol=0, atol=1e-5)


@torch.no_grad()
def test_pass_with_a_nan_is_no_verdict_on_the_model():
    model, ids = tiny_classifier("llama"), torch.tensor(words(12, seed=0))
    weight = model.base_model.norm.weight
    good = weight.detach().clone()
    weight[0] = torch.nan
    assert shared_prefix.packing_body(model, ids) is None
    weight.copy_(good)
    assert shared_prefix.packing_body(model, ids) is not None


@torch.no_grad()
def test_pass_that_fails_is_no_verdict_on_the_model():
    model, ids, failures = tiny_classifier("llama"), torch.tensor(words(12, seed=0)), [torch.OutOfMemoryError("full")]

    def fail_once(module, args):
        if failures:
            raise failures.pop()

    model.model.layers[1].register_forward_pre_hook(fail_once)
    assert shared_prefix.packing_body(model, ids) is None and not failures
    assert shared_prefix.packing_body(model, ids) is not None
