r"""
Attention over keys that are kept in parts, each part attended on its own and the results merged exactly.

A softmax over the union of two sets of keys is the mean of the softmaxes over each, weighted by their partition
functions, \\( e^{\mathrm{lse}} \\) (Hydragen, [2402.05099](https://huggingface.co/papers/2402.05099), section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Every query over every key, without a mask, and the logarithm of what the softmax divided by.

    Args:
        query (`torch.Tensor` of shape `(B, H, Q, D)`).
        key (`torch.Tensor` of shape `(B, H, K, D)`): `K >= 1`.
        value (`torch.Tensor` of shape `(B, H, K, E)`).
        scaling (`float`): Multiplies the products of queries and keys.
        softcap (`float`, *optional*): Bends them to `softcap * tanh(x / softcap)`.

    Returns:
        The outputs `(B, H, Q, E)` and the log-sum-exp `(B, H, Q)`, float32.

    Examples:

    ```python
    >>> import torch
    >>> ones = torch.ones(1, 1, 1, 2)
    >>> attend(ones, torch.zeros(1, 1, 4, 2), torch.arange(8.0).view(1, 1, 4, 2), scaling=1.0)
    (tensor([[[[3., 4.]]]]), tensor([[[1.3863]]]))

    ```
    """
    # The fused kernel takes no soft cap, values of another width, or gradients it would have to prepare.
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=scaling)
    logits = (query @ key.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    lse = logits.logsumexp(dim=-1)
    return (logits - lse.unsqueeze(-1)).exp().to(value.dtype) @ value, lse


def merge_attention(
    outputs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor], sink: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    The attention over all parts from the attention over each, \\( \sum_i o_i e^{l_i - l} \\) with
    \\( l = \log \sum_i e^{l_i} \\).

    Args:
        outputs (`Sequence[torch.Tensor]` of shape `(..., E)`): Output of each part.
        lses (`Sequence[torch.Tensor]` of shape `(...)`): Log-sum-exp of each part, `-inf` where it has no keys.
        sink (`torch.Tensor` broadcastable to `(...)`, *optional*): Logit of one more key whose value is 0.

    Returns:
        `torch.Tensor` of shape `(..., E)`, of the outputs' dtype.

    Examples:

    ```python
    >>> import torch
    >>> merge_attention([torch.tensor([1.0]), torch.tensor([5.0])], [torch.tensor(0.0), torch.tensor(0.0)])
    tensor([3.])

    ```
    """
    parts = torch.stack(list(lses))
    total = parts.logsumexp(dim=0)
    if sink is not None:
        total = torch.logaddexp(total, sink.to(total.dtype))
    weights = (parts - total).exp().unsqueeze(-1)
    merged = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
    assert isinstance(merged, torch.Tensor)
    return merged.to(outputs[0].dtype)
