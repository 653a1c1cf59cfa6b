"""
Give each candidate its stream of random numbers: a hash of (seed, its prompt, which repeat of it, its index).

Nothing else of the batch enters, so a candidate is the same in any batch, order and chunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import torch

PromptKey = bytes
"""Fingerprint of one prompt of a batch, made by [`prompt_keys`]."""


def prompt_keys(seed: int, prompts: Sequence[Sequence[int] | str]) -> list[PromptKey]:
    """
    Return one fingerprint per prompt of a batch: of the seed, the prompt's tokens or text, and how many equal prompts
    come before it.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for prompt in prompts:
        content = prompt.encode() if isinstance(prompt, str) else b"ids:" + ",".join(map(str, prompt)).encode()
        keys.append(_digest(b"prompt", str(seed).encode(), str(seen[content]).encode(), content))
        seen[content] += 1
    return keys


def candidate_key(prompt: PromptKey, candidate: int) -> int:
    """Return the 64-bit key of the stream that one candidate of a prompt is drawn with."""
    return _as_int64(_digest(b"candidate", str(candidate).encode(), prompt))


def selection_generator(prompt: PromptKey) -> torch.Generator:
    """Return a generator, seeded for this prompt, for the selection among its candidates."""
    return torch.Generator().manual_seed(_as_int64(_digest(b"selection", prompt)))


def falls_within(prompt: PromptKey, share: float) -> bool:
    """Return whether the prompt's key puts it into this share of all prompts."""
    return int.from_bytes(_digest(b"share", prompt)[:7], "little") < share * 2**56


def fresh_seed() -> int:
    """Draw a seed from torch's global generator, so that `torch.manual_seed` governs it as any other sampling."""
    return int(torch.randint(2**62, ()).item())


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _as_int64(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose, so that references are not the very responses that are calibrated with them."""
    return int.from_bytes(_digest(b"purpose", purpose.encode(), str(seed).encode())[:7], "little")
