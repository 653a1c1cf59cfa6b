r"""
Attention over keys kept in parts: each part is attended to on its own, and the results are merged exactly.

A softmax over the union of two sets of keys is the mean of the softmaxes over each, weighted by their partition
functions \\( e^{\mathrm{lse}} \\) (Hydragen, [2402.05099](https://huggingface.co/papers/2402.05099), section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Before torch 2.9 the fused kernel reads past the end of keys that have fewer heads than the queries
# (pytorch/pytorch#157893). Remove this when 2.9 is the oldest supported release.
_TAKES_GROUPED_HEADS = torch.__version__ >= "2.9"
# Queries per block where no fused kernel applies.
_BLOCK = 512


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Attend from every query to every key, without a mask; return the output and the log-sum-exp of the softmax.

    Args:
        query (`torch.Tensor` of shape `(B, H, Q, D)`).
        key (`torch.Tensor` of shape `(B, H / R, K, D)`): `K >= 1`; each head serves the queries of `R` heads.
        value (`torch.Tensor` of shape `(B, H / R, K, E)`).
        scaling (`float`): Multiplies the products of queries and keys.
        softcap (`float`, *optional*): Caps the scaled products: `softcap * tanh(x / softcap)`.

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
    Attend from each query to the keys up to its own position; the last query is at the last key.

    Takes and returns what [`attend`] does, with `K >= Q >= 1`, and:

    Args:
        window (`int`, *optional*): Most keys a query sees, that of its own position included. Defaults to all.

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
    # The fused kernel has no soft cap, needs values as wide as queries, and gives its log-sum-exp no gradient.
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1] and not differentiated


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if torch.is_autocast_enabled("cpu"):
        # Autocast does not reach this operator, and its inputs then have several types.
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
    """Attend one block of queries at a time, so that memory does not grow with them. Causal with a `window`."""
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
    folded = query.reshape(batch, key.shape[1], -1, width)  # query heads of one key head side by side
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
    Merge the attention over each part into that over all, \\( \sum_i o_i e^{l_i - l} \\) with
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
        # e^a / (e^a + e^b): exactly 1 for b = -inf.
        share = torch.sigmoid(total - lse).unsqueeze(-1)
        merged = torch.lerp(output.to(share.dtype), merged.to(share.dtype), share)
        if part < len(outputs) or sink is not None:
            total = torch.logaddexp(total, lse)
    if sink is not None:
        merged = merged * torch.sigmoid(total - sink.to(total.dtype)).unsqueeze(-1)
    return merged.to(outputs[0].dtype)
