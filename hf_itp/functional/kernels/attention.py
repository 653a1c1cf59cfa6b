r"""
Attention over keys that are kept in parts, each part attended on its own and the results merged exactly.

A softmax over the union of two sets of keys is the mean of the softmaxes over each, weighted by their partition
functions, \\( e^{\mathrm{lse}} \\) (Hydragen, [2402.05099](https://huggingface.co/papers/2402.05099), section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Before torch 2.9 the fused kernel reads beyond the end of keys that have fewer heads than the queries, and returns
# whatever lies there (pytorch/pytorch#157893). Goes when 2.9 is the oldest release that is supported.
_TAKES_GROUPED_HEADS = torch.__version__ >= "2.9"
# Queries attended to at once where no fused kernel does it.
_BLOCK = 512


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Every query over every key, without a mask, and the logarithm of what the softmax divided by.

    Args:
        query (`torch.Tensor` of shape `(B, H, Q, D)`).
        key (`torch.Tensor` of shape `(B, H / R, K, D)`): `K >= 1`; each head serves the queries of `R` heads.
        value (`torch.Tensor` of shape `(B, H / R, K, E)`).
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
    if _is_fused(query, key, value, softcap):
        return _fused(query, key, value, False, scaling)
    return _attend_in_blocks(query, key, value, scaling, softcap, window=None)


def attend_causally(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Each query over the keys up to its own position, the last query standing at the last key.

    Args:
        query (`torch.Tensor` of shape `(B, H, Q, D)`).
        key (`torch.Tensor` of shape `(B, H / R, K, D)`): `K >= Q >= 1`.
        value (`torch.Tensor` of shape `(B, H / R, K, E)`).
        scaling (`float`): Multiplies the products of queries and keys.
        softcap (`float`, *optional*): Bends them to `softcap * tanh(x / softcap)`.
        window (`int`, *optional*): How many keys a query sees at most, its own position's included.

    Returns:
        The outputs `(B, H, Q, E)` and the log-sum-exp `(B, H, Q)`, float32.

    Examples:

    ```python
    >>> import torch
    >>> ones = torch.ones(1, 1, 3, 2)
    >>> attend_causally(ones, ones, torch.arange(6.0).view(1, 1, 3, 2), scaling=1.0, window=2)[0]
    tensor([[[[0., 1.],
              [1., 2.],
              [3., 4.]]]])

    ```
    """
    length = key.shape[2]
    window = length if window is None else window
    # The fused kernel counts positions from the first key.
    if query.shape[2] == length <= window and _is_fused(query, key, value, softcap):
        return _fused(query, key, value, True, scaling)
    return _attend_in_blocks(query, key, value, scaling, softcap, window)


def _is_fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softcap: float | None) -> bool:
    # The fused kernel takes no soft cap and no values of another width, and its log-sum-exp passes no gradient on.
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1] and not differentiated


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if torch.is_autocast_enabled("cpu"):
        # It lies below what autocast reaches, and what comes here is of several types then.
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if not _TAKES_GROUPED_HEADS and key.shape[1] < query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)


def _attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of queries at a time, so that the memory does not grow with their number. Causal where `window` is."""
    length, shift = key.shape[2], key.shape[2] - query.shape[2]
    outputs, lses = [], []
    for start in range(0, query.shape[2], _BLOCK):
        block = query[:, :, start : start + _BLOCK]
        first, last, visible = 0, length, None
        if window is not None:
            position = torch.arange(start + shift, start + shift + block.shape[2], device=query.device)[:, None]
            first, last = max(0, start + shift - window + 1), start + shift + block.shape[2]
            column = torch.arange(first, last, device=query.device)
            visible = (column <= position) & (column > position - window)  # (block, keys)
        output, lse = _attend_block(block, key[:, :, first:last], value[:, :, first:last], scaling, softcap, visible)
        outputs.append(output)
        lses.append(lse)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def _attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    visible: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, width = query.shape
    folded = query.reshape(batch, key.shape[1], -1, width)  # the heads of one key head as queries of one product
    logits = (folded @ key.transpose(-1, -2)).float().view(batch, heads, length, -1) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    lse = logits.logsumexp(dim=-1)
    weights = (logits - lse.unsqueeze(-1)).exp().to(value.dtype)
    return (weights.view(*folded.shape[:3], -1) @ value).view(batch, heads, length, -1), lse


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
    merged, total = outputs[0], lses[0]
    for part, (output, lse) in enumerate(zip(outputs[1:], lses[1:], strict=True), start=2):
        # e^a / (e^a + e^b), which for b = -inf is exactly 1.
        share = torch.sigmoid(total - lse).unsqueeze(-1)
        merged = torch.lerp(output.to(share.dtype), merged.to(share.dtype), share)
        if part < len(outputs) or sink is not None:
            total = torch.logaddexp(total, lse)
    if sink is not None:
        merged = merged * torch.sigmoid(total - sink.to(total.dtype)).unsqueeze(-1)
    return merged.to(outputs[0].dtype)
