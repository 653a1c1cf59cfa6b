"""
A causal model's hidden states for sequences that begin alike, the common beginning run once.

Knows nothing of text, heads or rewards.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_itp.models.agreement import Verdicts
from hf_itp.models.attention_interface import EXACT_ATTENTION
from hf_itp.models.view import can_be_viewed, model_view
from hf_itp.rewards.forward.packing import ATTENTION, CannotPack, Packing

# Enough for rows of several tokens; wrong positions or a leak show from the second token on.
_PROBED_TOKENS = 12

_packs = Verdicts[bool]()


class SharedPrefix:
    """
    A prefix that a model has run once, and what continues it.

    Args:
        body (`PreTrainedModel`): The view of the model's body that [`packing_body`] makes.
        ids (`torch.LongTensor` of shape `(P,)`): The prefix.
    """

    def __init__(self, body: Any, ids: torch.Tensor) -> None:
        self._body, self._length = body, len(ids)
        self._windows = _windows(body.config)
        packing = Packing([len(ids)], self._windows)
        self._run(ids, 0, packing)
        self._prefix = packing.kept

    def last_hidden(self, suffixes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The hidden states `(len(suffixes), D)` at the last token of each suffix `(T,)`, `T >= 1`."""
        lengths = [len(suffix) for suffix in suffixes]
        hidden = self._run(torch.cat(list(suffixes)), self._length, Packing(lengths, self._windows, self._prefix))
        return hidden[torch.tensor(lengths, dtype=torch.long, device=hidden.device).cumsum(0) - 1]

    def _run(self, ids: torch.Tensor, start: int, packing: Packing) -> torch.Tensor:
        positions = torch.cat([torch.arange(start, start + length) for length in packing.lengths]).to(ids.device)
        with packing.active():
            outputs = self._body(input_ids=ids[None], position_ids=positions[None], use_cache=False, return_dict=True)
        return outputs.last_hidden_state[0]


def packing_body(model: PreTrainedModel, ids: torch.Tensor) -> Any | None:
    """
    A view of the model's body for [`SharedPrefix`], or `None` where the model cannot take one.

    Anything that passes from token to token other than by attention (a recurrent state, positions counted along the
    batch) would leak between the rows. What a model says of itself is checked at every use, and once per model what it
    makes of a few of the tokens `ids` of shape `(L,)`.
    """
    if not _says_it_can(model):
        return None
    body = model_view(model, ATTENTION).base_model
    agrees = _packs.recall(model)
    if agrees is None and (agrees := _agrees(model.base_model, body, ids)) is not None:
        _packs.remember(model, agrees)
    return body if agrees else None


def _says_it_can(model: PreTrainedModel) -> bool:
    body: Any = model.base_model
    attention = body.config._attn_implementation
    if not (body._supports_attention_backend and attention in EXACT_ATTENTION and can_be_viewed(model)):
        return False
    if attention == "sdpa" and getattr(body.config, "attn_logit_softcapping", None) is not None:
        return False  # which sdpa drops or refuses, and the reward is what the model computes
    try:
        _windows(body.config)
    except CannotPack:
        return False
    return "position_ids" in inspect.signature(body.forward).parameters


def _windows(config: Any) -> list[int | None]:
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError):
        raise CannotPack("the configuration names no layers that are known") from None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise CannotPack("a layer keeps something other than keys and values")
    return [getattr(layer, "sliding_window", None) for layer in layers]


def _agrees(plain: Any, body: Any, ids: torch.Tensor) -> bool | None:
    """Return whether the body packs rows as the model runs them; `None` if a NaN or a failed pass leaves that open."""
    ids = ids[:_PROBED_TOKENS]
    cut = (len(ids) + 1) // 2
    suffixes = [ids[cut:], ids[:cut], ids[:1]]
    try:
        packed = SharedPrefix(body, ids[:cut]).last_hidden(suffixes)
    except CannotPack:
        return False
    except Exception:
        # The model's doing or, such as a lack of memory, nobody's: whole sequences now, and another try next time.
        return None
    for hidden, suffix in zip(packed, suffixes, strict=True):
        row = torch.cat([ids[:cut], suffix])[None]
        expected = plain(input_ids=row, use_cache=False, return_dict=True).last_hidden_state[0, -1]
        tolerance = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
        if bool(hidden.isnan().any() | expected.isnan().any()):
            return None
        if not bool((hidden - expected).norm() <= tolerance * expected.norm()):
            return False
    return True
