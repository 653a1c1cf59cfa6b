"""
The text of a response as it was written: cut from the decoding of prompt and response together.

Decoded by itself a response may read otherwise. Tokenizers of the Llama-2, Mistral and T5 kind drop its leading space,
others clean up spaces, and a prompt may end inside a character.
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
# In some pattern of `clean_up_tokenization`, which could reach across them.
_CLEANED_UP = "ntmsver"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class ResponseReader:
    """
    Reads the responses to one prompt, whose text is worked out once.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`Sequence[int]`): What the responses continue: the prompt's tokens, of an encoder-decoder those its
            decoder begins with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self._before, self._head = _context(tokenizer, [int(token) for token in prompt_ids])

    def __call__(self, response_ids: Iterable[int]) -> str:
        """The text of one response, without special tokens."""
        whole = _decoded(self._tokenizer, [*self._before, *(int(token) for token in response_ids)])
        if whole.startswith(self._head):
            return whole[len(self._head) :]
        # What was written last has changed how the end of the prompt reads, such as half a character.
        pairs = enumerate(zip(whole, self._head, strict=False))
        return whole[next((place for place, (one, other) in pairs if one != other), len(whole)) :]


def response_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int], response_ids: Iterable[int]) -> str:
    """
    The text a response adds to its prompt: the decoding of both without that of the prompt, special tokens left out.

    Where the response changes how the end of the prompt reads, the text goes on from where both read alike. For
    several responses to one prompt build a [`ResponseReader`].

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`Sequence[int]`): The prompt's tokens; of an encoder-decoder those its decoder begins with.
        response_ids (`Sequence[int]`): The response's tokens.
    """
    return ResponseReader(tokenizer, prompt_ids)(response_ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # Not `batch_decode`, which takes no responses for one empty response.
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _context(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> tuple[list[int], str]:
    """What of a prompt decides how that which follows it reads, all of it if in doubt; and its text."""
    if len(prompt_ids) > _TAIL and (kinds := _local_decoders(tokenizer)):
        tail = prompt_ids[-_TAIL:]
        head = _decoded(tokenizer, tail)
        if _holds_a_letter(tokenizer, kinds, tail[1:], head):
            return tail, head
    return prompt_ids, _decoded(tokenizer, prompt_ids)


def _local_decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """
    The kinds of decoders a tokenizer has, if none looks further back than to the last whole letter: what they do to a
    first token, to half characters and to the space before a punctuation mark does not reach across it. Else none.
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
    except Exception:  # tokenizers raises it bare where a decoder is written in Python
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
    # Where a run of byte tokens ends decides how all of it reads.
    special = set(tokenizer.all_special_ids)
    tokens: Any = tokenizer.convert_ids_to_tokens([token for token in ids if token not in special])
    return _has_letter(text) and any(_has_letter(token) and not _BYTE.fullmatch(token) for token in tokens)


def _has_letter(text: str) -> bool:
    return any(character.isalnum() and character not in _CLEANED_UP for character in text)
