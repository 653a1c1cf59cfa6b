"""
How many tokens of prompt and response a reward model sees.

Knows nothing of text.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError, ArgumentTypeError


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """
    `max_length`, once it is known to fit, or what model and tokenizer say; `None` without a limit.

    Raises:
        `ArgumentError`: If `max_length` leaves no room beside the special tokens, or exceeds the model's positions.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ArgumentTypeError(
            f"`tokenizer` must be a transformers tokenizer, got a {type(tokenizer).__name__}. Load it with "
            "AutoTokenizer.from_pretrained(...)."
        )
    positions = _num_positions(model)
    if max_length is None:
        # Tokenizers without a limit say 1e30.
        limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
        return min(limits, default=None)
    smallest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    remedy = "One token has to be left beside the special ones: raise it or leave it out."
    max_length = check_count("max_length", max_length, smallest, remedy)
    if positions and max_length > positions:
        raise ArgumentError(
            f"`max_length` has to be at most the reward model's {positions} positions, but is {max_length}. Lower it "
            "or leave it out."
        )
    return max_length


def _num_positions(model: PreTrainedModel) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and its kin number positions from behind the padding index, so their tables are longer than usable.
        if not isinstance(module, nn.Embedding) or module.padding_idx is None:
            continue
        if name.endswith("position_embeddings"):
            return module.num_embeddings - module.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and positions > 0 else None
