"""
A linear head over attention-pooled hidden states, written as one BERT layer of `BertForSequenceClassification`.

That class scores only the first token. The layer brings to it what the head needs: one attention head averages over
the response, one looks at its end token, and both pass on only their projection on the head's weights.
"""

from __future__ import annotations

import math

import torch
from transformers import BertConfig, BertForSequenceClassification

_REWARD, _RESPONSE, _END = 0, 0, 1  # the coordinate that carries the reward; the two attention heads in use
_GAIN, _CONSTANT = 100.0, 1e4
_BEND = 0.05  # tanh(x) = x to 1% for rewards within 3.5; beyond it bends, up to 20


def pool(hidden: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    Return what the pooling layer's attention sees: per key, a mean of the hidden states weighted by the softmax of
    `hidden @ key`.

    Args:
        hidden (`torch.Tensor` of shape `(B, T, D)`): Hidden states.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens, 0 for padding.
        keys (`torch.Tensor` of shape `(2, D)`): The directions attended to.

    Returns:
        `torch.Tensor` of shape `(B, 2, D)`.

    Examples:

    ```python
    >>> import torch
    >>> pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]), torch.tensor([[0.0], [99.0]]))
    tensor([[[2.],
             [3.]]])

    ```
    """
    logits = (hidden @ keys.T).masked_fill(mask.unsqueeze(-1) == 0, -math.inf)  # (B, T, 2)
    return logits.softmax(dim=1).transpose(1, 2) @ hidden


def classifier_weights(
    encoder: dict[str, torch.Tensor], keys: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, config: BertConfig
) -> dict[str, torch.Tensor]:
    """
    Return the state dict of a `BertForSequenceClassification` with the logit
    `(pool(hidden, mask, keys) * weights).sum() + bias`.

    Args:
        encoder (`dict[str, torch.Tensor]`): State dict of a `BertModel` of the same width.
        keys, weights (`torch.Tensor` of shape `(2, D)`): Of the pooling and of the linear head: response, end token.
        bias (`torch.Tensor` of shape `(1,)`): Of the linear head.
        config (`BertConfig`): Its last layer becomes the pooling layer, the others are the encoder's first ones.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in BertForSequenceClassification(config).state_dict().items()}
    layer = f"bert.encoder.layer.{config.num_hidden_layers - 1}."
    new = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items() if name.startswith(layer)}
    new |= {
        name: torch.zeros(shape, dtype=torch.float32)
        for name, shape in shapes.items()
        if "pooler" in name or "classifier" in name
    }
    old = {name: encoder[name.removeprefix("bert.")].float().clone() for name in shapes if name not in new}

    size = config.hidden_size // config.num_attention_heads
    attention = layer + "attention."
    for head, coordinate in enumerate((_RESPONSE * size, _END * size)):
        new[attention + "self.query.bias"][coordinate] = math.sqrt(size)  # undoes the 1 / sqrt(size) of attention
        new[attention + "self.key.weight"][coordinate] = keys[head]
        new[attention + "self.value.weight"][coordinate] = weights[head]
        new[attention + "output.dense.weight"][_REWARD, coordinate] = _GAIN  # drowns the first token's own state
    # Two large opposite entries make LayerNorm divide by a constant, which its weight undoes.
    divisor = _CONSTANT * math.sqrt(2 / config.hidden_size)
    for block, gain in (("attention.output.", _GAIN), ("output.", 1.0)):
        new[layer + block + "dense.bias"][1:3] = torch.tensor([_CONSTANT, -_CONSTANT], dtype=torch.float32)
        new[layer + block + "LayerNorm.weight"][_REWARD] = divisor / gain
    new["bert.pooler.dense.weight"][_REWARD, _REWARD] = _BEND
    new["classifier.weight"][0, _REWARD] = 1 / _BEND
    new["classifier.bias"][:] = bias
    return old | new
