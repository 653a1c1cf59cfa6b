"""
How many tokens of prompt and response a reward model sees.

Knows nothing of text.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.checks import check_count


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """
    `max_length`, once it is known to fit, or what model and tokenizer say; `None` without a limit.

    Raises:
        `ArgumentError`: If `max_length` leaves no room beside the special tokens, or exceeds the model's positions.
    """
    positions = _num_positions(model)
    if max_length is None:
        # Tokenizers without a limit say 1e30.
        limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
        return min(limits, default=None)
    smallest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    remedy = "Leave room for one token beside the special ones, or leave it out."
    return check_count("max_length", max_length, smallest, remedy, positions, "the reward model's positions")


def _num_positions(model: PreTrainedModel) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and its kin number positions from behind the padding index, so their tables are longer than usable.
        if not isinstance(module, nn.Embedding) or module.padding_idx is None:
            continue
        if name.endswith("position_embeddings"):
            return module.num_embeddings - module.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and positions > 0 else None
