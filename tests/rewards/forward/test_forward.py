"""Test the forward pass itself: padding, pooling, modes, and models whose own forward must be used."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaForSequenceClassification
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from hf_itp.errors import RewardModelError
from hf_itp.rewards.forward import passes
from hf_itp.rewards.forward.passes import evaluating, logits, pools_last_token
from hf_itp.rewards.text.encoding import TokenSequence
from tests.rewards.classifiers import DECODERS, ENCODERS, decoder_reward, tiny_classifier

pytestmark = pytest.mark.oldest


def sequence(*ids):
    return TokenSequence(ids, (0,) * len(ids), (True,) * len(ids))


class TwiceTheLogits(LlamaForSequenceClassification):
    """Model with a forward of its own, like one from remote code."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return SequenceClassifierOutput(logits=2 * self.score(self.model(input_ids).last_hidden_state[:, -1]))


class WithoutLogits(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=self.model(input_ids).last_hidden_state)


class LogitsPerToken(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return SequenceClassifierOutput(logits=self.score(self.model(input_ids).last_hidden_state))


def as_class(model_class):
    model = tiny_classifier("llama")
    model.__class__ = model_class
    return model


def test_only_decoders_of_transformers_are_pooled_here():
    assert all(pools_last_token(tiny_classifier(architecture)) for architecture in DECODERS)
    assert not any(pools_last_token(tiny_classifier(architecture)) for architecture in ENCODERS)
    assert not pools_last_token(as_class(TwiceTheLogits))


def test_last_attended_token_is_pooled_even_if_it_is_the_pad_token():
    model = tiny_classifier("llama", pad_token_id=2)
    outputs = logits(model, [sequence(1, 27, 2), sequence(1, 27, 18, 2, 2)])
    expected = [decoder_reward(model, "<s> how </s>"), decoder_reward(model, "<s> how day </s> </s>")]
    assert outputs[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_forward_a_model_brings_is_used():
    outputs = logits(as_class(TwiceTheLogits), [sequence(1, 27, 18)])
    assert outputs.item() == pytest.approx(2 * decoder_reward(tiny_classifier("llama"), "<s> how day"), abs=1e-4)


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (WithoutLogits, "got a BaseModelOutput without them. Wrap the model in a RewardFunction"),
        (LogitsPerToken, r"shape \(1, 1\), got \(1, 2, 1\). Wrap the model in a RewardFunction"),
    ],
)
def test_output_that_holds_no_reward_is_refused(model_class, message):
    with pytest.raises(RewardModelError, match=message):
        logits(as_class(model_class), [sequence(1, 27)])


def test_ids_the_model_does_not_know_are_refused():
    with pytest.raises(RewardModelError, match=r"\(64\), got 64. Pass the `tokenizer`"):
        logits(tiny_classifier("llama"), [sequence(1, 64)])


def test_head_outside_float32_is_not_replaced_in_the_model():
    model = tiny_classifier("bert").bfloat16()
    children = dict(model.named_children())
    logits(model, [sequence(1, 27, 2)])
    assert dict(model.named_children()) == children
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_follows_its_weights_and_copies_none_that_are_float32(architecture, dtype):
    model = tiny_classifier(architecture).to(dtype)
    name = "score" if architecture == "llama" else "classifier"
    head, ids = getattr(model, name), [sequence(1, 27, 2)]
    weights = list(head.parameters())
    ours = passes._in_float32(head)
    assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
    assert [weight.data_ptr() for weight in ours.parameters()] == [weight.data_ptr() for weight in weights] or (
        dtype == torch.bfloat16
    )
    before = logits(model, ids)
    for weight in weights:
        weight.data.mul_(2)  # leaves no trace but the values
    after = logits(model, ids)
    linear = architecture != "roberta"
    assert torch.equal(after, 2 * before) if linear else not torch.equal(after, before)
    assert list(head.parameters()) == weights and {weight.dtype for weight in weights} == {dtype}


@pytest.mark.uses_global_rng
def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False, False]


def test_only_the_outermost_use_restores_the_mode():
    model = tiny_classifier("bert").train()
    with evaluating(model):
        with evaluating(model):
            pass
        assert not model.training
    assert model.training


def test_gradients_and_autocast_are_off_inside():
    model = tiny_classifier("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), evaluating(model):
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
