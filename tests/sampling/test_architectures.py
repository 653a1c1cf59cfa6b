"""
Test every architecture against plain `generate`: equal greedy tokens, and candidates that ignore the rest of a batch.
"""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

from tests.sampling.drawing import draw, rows_of
from tests.tiny import (
    ARCHITECTURES,
    ENCODER_DECODER,
    LEFT_PADDING_MATTERS,
    PAD,
    VISION_LANGUAGE,
    PromptBoundReward,
    left_padded_batch,
    tiny_model,
    tiny_tokenizer,
    vision_batch,
)

pytestmark = pytest.mark.oldest

# The path that each architecture takes for the prompt: see `hf_itp.sampling.decoders`. Not shared: attention of their
# own (bloom, falcon), keys made after the cache (deepseek_v3), states, encoders and pictures.
SHARED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "cohere", "olmo2", "smollm3", "gpt2"),
    *("opt", "gpt_neox", "mixtral", "qwen3_moe", "gpt_oss"),
)
PATHS = dict.fromkeys(ARCHITECTURES, "expanded") | dict.fromkeys(SHARED, "shared") | {"recurrent_gemma": "repeated"}
NUM_CANDIDATES = 4


def batch_for(architecture):
    return vision_batch(architecture, [10, 9, 12]) if architecture in VISION_LANGUAGE else left_padded_batch([7, 5, 9])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_are_those_of_plain_generate(architecture):
    model, batch = tiny_model(architecture), batch_for(architecture)
    plain = model.generate(**batch, max_new_tokens=12, do_sample=False)
    prompt_length = 1 if architecture in ENCODER_DECODER else batch["input_ids"].shape[1]
    pools, path = draw(model, batch, 1, do_sample=False)
    assert path == PATHS[architecture]
    for [response], expected in zip(pools, plain[:, prompt_length:].tolist(), strict=True):
        assert response == expected[: len(response)]
        # After its end token plain `generate` pads.
        assert set(expected[len(response) :]) <= {PAD}


def greedy_like_plain(model, batch):
    """Return the output with one greedy candidate; assert that it is what plain `generate` decodes."""
    settings = {"max_new_tokens": 6, "do_sample": False}
    output = model.generate(
        **batch, **settings, strategy="best_of_n", num_candidates=1, reward_model=PromptBoundReward(), seed=0,
        prompts=["a", "b", "c"], tokenizer=tiny_tokenizer(), return_dict_in_generate=True,
    )  # fmt: skip
    plain = model.generate(**batch, **settings)
    assert output.sequences.equal(plain[:, : output.sequences.shape[1]])
    return output


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keyword_draws_what_plain_generate_draws(architecture):
    """With one greedy candidate the whole of `generate(strategy=...)` has one right result."""
    output = greedy_like_plain(tiny_model(architecture), batch_for(architecture))
    assert output.diagnostics["path"] == PATHS[architecture] and output.diagnostics["path_reason"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_candidates_are_the_same_for_any_chunk_size(architecture):
    model, batch = tiny_model(architecture), batch_for(architecture)
    together, _ = draw(model, batch, NUM_CANDIDATES)
    assert len({tuple(response) for pool in together for response in pool}) > NUM_CANDIDATES
    for batch_size in (1, 5, 100):
        assert draw(model, batch, NUM_CANDIDATES, batch_size=batch_size)[0] == together


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name not in {*LEFT_PADDING_MATTERS, *VISION_LANGUAGE}]
)
def test_candidates_are_the_same_alone_in_a_batch_and_in_any_order(architecture):
    """Prompts have unequal lengths, so a prompt by itself has no padding."""
    model, batch = tiny_model(architecture), batch_for(architecture)
    together, _ = draw(model, batch, NUM_CANDIDATES)
    assert draw(model, rows_of(batch, [2, 0, 1]), NUM_CANDIDATES)[0] == [together[row] for row in (2, 0, 1)]
    for row, pool in enumerate(together):
        assert draw(model, rows_of(batch, [row]), NUM_CANDIDATES)[0] == [pool]


def test_path_of_gemma2_as_its_release_loads_it():
    """Before transformers 5.21 its attention drops the soft cap, which shared prompts would not. Remove with 5.20."""
    drops_the_cap = Version(transformers.__version__) < Version("5.21")
    output = greedy_like_plain(tiny_model("gemma2", attn_implementation=None), batch_for("gemma2"))
    assert output.diagnostics["path"] == ("expanded" if drops_the_cap else "shared")
    assert ("soft cap" in output.diagnostics["path_reason"]) == drops_the_cap


@pytest.mark.parametrize("architecture", ["llama", "mamba", "t5"])
def test_more_candidates_begin_with_the_fewer(architecture):
    model, batch = tiny_model(architecture), batch_for(architecture)
    few, _ = draw(model, batch, 2)
    many, _ = draw(model, batch, 6)
    assert [pool[:2] for pool in many] == few


def test_equal_prompts_in_one_batch_get_different_candidates():
    model = tiny_model("llama")
    batch = rows_of(left_padded_batch([7, 5]), [0, 0, 1])
    pools, _ = draw(model, batch, NUM_CANDIDATES)
    assert pools[0] != pools[1]
    # The first of the two is what it is by itself.
    assert draw(model, rows_of(batch, [0]), NUM_CANDIDATES)[0] == [pools[0]]


def test_another_seed_gives_other_candidates():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    assert draw(model, batch, NUM_CANDIDATES, seed=0)[0] != draw(model, batch, NUM_CANDIDATES, seed=1)[0]


def test_model_without_cache_repeats_the_prompt():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    with_cache, path = draw(model, batch, NUM_CANDIDATES)
    without_cache, path_without = draw(model, batch, NUM_CANDIDATES, use_cache=False)
    assert (path, path_without) == (PATHS["llama"], "repeated")
    assert with_cache == without_cache
