"""
Read the text of a response as it was written: decode prompt and response together, then cut off the prompt.

Decoded by itself a response may read differently. Tokenizers like those of Llama-2, Mistral and T5 drop its leading
space, others clean up spaces, and a prompt may end inside a character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Tokens of a long prompt that are decoded with each response.
_TAIL = 64
_LOCAL_DECODERS = {"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Strip", "WordPiece"}
# Letters in the patterns of `clean_up_tokenization`, which could reach across them.
_CLEANED_UP = "ntmsver"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class ResponseReader:
    """
    Reader of the responses to one prompt, which decodes the prompt only once.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`Sequence[int]`): The prompt's tokens; for an encoder-decoder those its decoder begins with.
        special (`bool`, *optional*, defaults to `False`): Write special tokens too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int], *, special: bool = False):
        self._tokenizer, self._special = tokenizer, special
        self._before, self._head = _context(tokenizer, [int(token) for token in prompt_ids], special)

    def __call__(self, response_ids: Iterable[int]) -> str:
        """Return the text of one response."""
        whole = _decoded(self._tokenizer, [*self._before, *(int(token) for token in response_ids)], self._special)
        if whole.startswith(self._head):
            return whole[len(self._head) :]
        # The response has changed how the end of the prompt reads, such as half a character.
        pairs = enumerate(zip(whole, self._head, strict=False))
        return whole[next((place for place, (one, other) in pairs if one != other), len(whole)) :]


def response_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int], response_ids: Iterable[int]) -> str:
    """
    Return the text a response adds to its prompt: both decoded together, without the prompt and special tokens.

    If the response changes how the end of the prompt reads, the text begins where the two decodings first differ. For
    several responses to one prompt make a [`ResponseReader`].

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`Sequence[int]`): The prompt's tokens; for an encoder-decoder those its decoder begins with.
        response_ids (`Sequence[int]`): The response's tokens.
    """
    return ResponseReader(tokenizer, prompt_ids)(response_ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], special: bool) -> str:
    # Not `batch_decode`, which takes an empty list for one empty response.
    return str(tokenizer.decode(ids, skip_special_tokens=not special))


def _context(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], special: bool) -> tuple[list[int], str]:
    """Return the end of a prompt that decides how a response after it reads (if in doubt all of it), and its text."""
    if len(prompt_ids) > _TAIL and (kinds := _local_decoders(tokenizer)):
        tail = prompt_ids[-_TAIL:]
        head = _decoded(tokenizer, tail, special)
        if _holds_a_letter(tokenizer, kinds, tail[1:], head):
            return tail, head
    return prompt_ids, _decoded(tokenizer, prompt_ids, special)


def _local_decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """
    Return the kinds of a tokenizer's decoders, or an empty set if one may look back beyond the last whole letter.

    The others change a first token, half characters and the space before a punctuation mark, never across a letter.
    """
    kind: Any = type(tokenizer)
    own = ("decode", "_decode", "clean_up_tokenization")
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in own
    ):
        return set()
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return {"none"}
    try:
        described = json.loads(decoder.__getstate__())
    except Exception:  # tokenizers raises no other if a decoder is written in Python
        return set()
    parts = described["decoders"] if described["type"] == "Sequence" else [described]
    is_local = all(
        part["type"] in _LOCAL_DECODERS or (part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1)
        for part in parts
    )
    return {part["type"] for part in parts} if is_local else set()


def _holds_a_letter(tokenizer: PreTrainedTokenizerBase, kinds: set[str], ids: list[int], text: str) -> bool:
    if "ByteLevel" in kinds:
        return _has_letter(text)
    # How a run of byte tokens reads depends on where it ends.
    special = set(tokenizer.all_special_ids)
    tokens: Any = tokenizer.convert_ids_to_tokens([token for token in ids if token not in special])
    return _has_letter(text) and any(_has_letter(token) and not _BYTE.fullmatch(token) for token in tokens)


def _has_letter(text: str) -> bool:
    return any(character.isalnum() and character not in _CLEANED_UP for character in text)
