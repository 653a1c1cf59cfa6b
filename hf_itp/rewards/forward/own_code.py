"""
Rewards of models whose class came with their checkpoint, read as their cards do: by `get_score`, or from the `score`
or the only logit of a forward pass.

They run one response at a time: only the class knows which token of a padded batch it pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_itp.errors import RewardModelError
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.forward import passes
from hf_itp.rewards.text.encoding import PairEncoder
from hf_itp.rewards.text.rendering import conversation


def has_own_code(model: PreTrainedModel) -> bool:
    """Return whether the model's class came with its checkpoint."""
    return type(model).__module__.startswith("transformers_modules.")


def rewards(model: Any, encoder: PairEncoder, prompts: Sequence[Prompt], responses: Sequence[str]) -> torch.Tensor:
    """Return the rewards `(n,)`, float32, on the CPU."""
    with passes.evaluating(model):
        if hasattr(model, "get_score"):
            chats = [conversation(*pair) for pair in zip(prompts, responses, strict=True)]
            return torch.tensor(
                [float(model.get_score(encoder.tokenizer, chat)) for chat in chats], dtype=torch.float32
            )
        return torch.stack([_reward(model, ids) for ids, *_ in encoder.encode(prompts, responses)])


def _reward(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    tokens = torch.tensor([ids], dtype=torch.long, device=passes.input_device(model))
    outputs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    found = getattr(outputs, "score", None)
    if found is None:
        # Others call it `logits`, or return only it.
        found = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        shape = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else "neither"
        raise RewardModelError(
            f"`{type(model).__name__}`, which came with its checkpoint, must return one `score` or one of `logits` "
            f"per response, got {shape}. Wrap the model in a callable f(prompts, completions, **kwargs)."
        )
    return found.reshape(()).float().cpu()
