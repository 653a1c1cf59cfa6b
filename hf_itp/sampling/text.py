"""The text of a response: what it adds to the text of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def response_text(tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
    """
    Decode prompt and response as one, without special tokens, and cut the prompt's text off.

    Decoded apart, a response loses the space it begins with under tokenizers that strip one, such as Llama-2's.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`list[int]`): Tokens of the prompt; none for an encoder-decoder, whose decoder never sees them.
        response_ids (`list[int]`): Tokens of the response.
    """
    before = str(tokenizer.decode(list(prompt_ids), skip_special_tokens=True))
    whole = str(tokenizer.decode([*prompt_ids, *response_ids], skip_special_tokens=True))
    # The prompt may end within a character that the response makes whole: that is part of the response.
    alike = next((place for place, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), None)
    return whole[min(len(before), len(whole)) if alike is None else alike :]
