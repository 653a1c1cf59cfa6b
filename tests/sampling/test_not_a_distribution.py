"""
Test logits that are not a distribution: an error names the prompt, as plain `generate` refuses them too.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import hf_itp
from hf_itp.errors import DistributionError
from hf_itp.functional.kernels.categorical import most_probable, sample_categorical
from tests.sampling.drawing import draw
from tests.tiny import EOS, left_padded_batch, tiny_model


class DeadEnd(LogitsProcessor):
    """Processor that leaves nothing to the second prompt from its third token on, as a grammar may."""

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= 7 + 2:
            scores[1] = -torch.inf
        return scores


def broken(model, kind):
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        if kind == "NaN":
            head.fill_(torch.nan)
        elif kind == "one NaN":
            head[5, 3] = torch.nan
        else:
            head[5] = torch.inf
    return model


@pytest.mark.parametrize("kind", ["NaN", "one NaN", "infinite"])
@pytest.mark.parametrize("architecture", ["llama", "bloom", "mamba", "t5", "recurrent_gemma"])
def test_broken_weights_draw_nothing(architecture, kind):
    model, batch = broken(tiny_model(architecture), kind), left_padded_batch([7, 5])
    with pytest.raises(RuntimeError, match="probability tensor"):
        model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=3)
    with pytest.raises(DistributionError, match="token 0 of a response to prompt 0"):
        draw(model, batch, 3)
    with pytest.raises(DistributionError, match="Check its weights and dtype"):
        draw(model, batch, 1, do_sample=False)


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.5}], ids=str)
def test_no_filter_makes_a_distribution_of_nan(settings):
    with pytest.raises(DistributionError):
        draw(broken(tiny_model("llama"), "one NaN"), left_padded_batch([7, 5]), 3, **settings)


def test_the_prompt_without_a_next_token_is_named():
    settings = {"logits_processor": LogitsProcessorList([DeadEnd()]), "suppress_tokens": [EOS]}
    with pytest.raises(DistributionError, match="-inf for every token at token 2 of a response to prompt 1"):
        draw(tiny_model("llama"), left_padded_batch([7, 5]), 3, **settings)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_what_follows_an_end_token_does_not_matter(architecture):
    """Finished rows stay in the batch for a while; it is no error if nothing can follow their end token."""
    model, batch = tiny_model(architecture), left_padded_batch([7, 5])
    settings = {"sequence_bias": [[[EOS], 2.0]], "max_new_tokens": 20}
    expected, _ = draw(model, batch, 16, **settings)
    assert len({len(response) for pool in expected for response in pool}) > 5
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] = torch.nan
    head = tiny_model(architecture).get_output_embeddings().weight  # the two may be one tensor
    model.get_output_embeddings().weight = torch.nn.Parameter(head)
    assert draw(model, batch, 16, **settings)[0] == expected


def test_the_call_fails_with_the_builtin_that_plain_generate_raises(tokenizer):
    model = broken(tiny_model("llama"), "NaN")
    with pytest.raises(RuntimeError, match="can be drawn"):
        model.generate(
            **left_padded_batch([7]),
            strategy="best_of_n",
            reward_model=lambda prompts, completions, **kwargs: [0.0] * len(completions),
            prompts=["q"],
            num_candidates=3,
            max_new_tokens=4,
            seed=0,
            tokenizer=tokenizer,
        )


def test_references_are_no_tokens_of_nan(tokenizer):
    model = broken(tiny_model("llama"), "NaN")
    with pytest.raises(DistributionError):
        hf_itp.RewardCalibrator.fit(
            model, lambda prompts, completions, **kwargs: [0.0] * len(completions), ["a b"], num_reference=4,
            tokenizer=tokenizer, max_new_tokens=4,
        )  # fmt: skip


def test_rows_that_do_not_matter_may_be_anything():
    logits = torch.tensor([[0.0, torch.nan], [0.0, 50.0], [-torch.inf, -torch.inf]])
    keys, matters = torch.arange(3), torch.tensor([False, True, False])
    assert sample_categorical(logits, keys, 0, matters)[1] == 1
    assert most_probable(logits, matters)[1] == 1
    for draw_one in (lambda: sample_categorical(logits, keys, 0), lambda: most_probable(logits)):
        with pytest.raises(DistributionError) as caught:
            draw_one()
        assert caught.value.row == 0
