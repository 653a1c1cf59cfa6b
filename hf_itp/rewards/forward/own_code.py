"""
Rewards of models whose class came with their checkpoint, read as their cards do: by `get_score`, or from the `score`
or the only logit of a forward pass.

They run one response at a time: only the class knows which token of a padded batch it pools.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_itp.errors import ItpWarning, RewardModelError
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.forward import passes
from hf_itp.rewards.text.context import Context
from hf_itp.rewards.text.encoding import PairEncoder
from hf_itp.rewards.text.rendering import conversation


def has_own_code(model: PreTrainedModel) -> bool:
    """Return whether the model's class came with its checkpoint."""
    return type(model).__module__.startswith("transformers_modules.")


def reads_chats(model: PreTrainedModel) -> bool:
    """Return whether the model's own code renders the chats."""
    return has_own_code(model) and hasattr(model, "get_score")


def warn_of_unseen_context(model: PreTrainedModel, contexts: Sequence[Context]) -> None:
    """Warn of tools and documents, which `get_score` does not take."""
    for name in sorted({name for context in contexts for name in context}):
        warnings.warn(
            f"The reward model's own code, `{type(model).__name__}.get_score`, takes no `{name}`, so the reward does "
            "not see them. Write them into a system message.",
            ItpWarning,
            stacklevel=4,
        )


def rewards(
    model: Any, encoder: PairEncoder, prompts: Sequence[Prompt], responses: Sequence[str], contexts: Sequence[Context]
) -> torch.Tensor:
    """Return the rewards `(n,)`, float32, on the CPU."""
    with passes.evaluating(model):
        if reads_chats(model):
            chats = [conversation(*pair) for pair in zip(prompts, responses, strict=True)]
            return torch.tensor(
                [float(model.get_score(encoder.tokenizer, chat)) for chat in chats], dtype=torch.float32
            )
        return torch.stack([_reward(model, ids) for ids, *_ in encoder.encode(prompts, responses, contexts)])


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
