"""
Checks of a checkpoint's or a caller's generation config: no NaN, and end tokens that exist.

transformers does not check these: a top_p of NaN filters nothing, and an end token that does not exist ends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig

from hf_itp.arrays import as_number
from hf_itp.errors import ArgumentError

_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")


def check_settings(config: GenerationConfig, vocabulary: int | None = None) -> None:
    """
    Raise if a number is NaN, a token id is not an integer, or an end token does not exist.

    -1 stands for no token, as in many checkpoints.

    Args:
        config (`GenerationConfig`): A checkpoint's, a caller's, or both.
        vocabulary (`int`, *optional*): Number of tokens of the model. By default end tokens have no upper bound.

    Raises:
        `ArgumentError`: Names the setting.
    """
    for name, value in config.to_dict().items():
        if any(math.isnan(number) for number in _floats(value)):
            raise ArgumentError(
                f"`{name}` must be a number, got NaN from the generation config. Pass {name}=... to `generate`, or "
                "correct the checkpoint's generation_config.json."
            )
    for name in _TOKENS:
        value = getattr(config, name, None)
        tokens = value.tolist() if isinstance(value, torch.Tensor) else value
        for token in tokens if isinstance(tokens, (list, tuple)) else [tokens]:
            # Only an end token must be in the vocabulary: some checkpoints pad with an id beyond it.
            below = vocabulary if name == "eos_token_id" else None
            if token is not None and not _is_id(token, below):
                bound = "" if below is None else f" below {below}, the size of the vocabulary"
                raise ArgumentError(
                    f"`{name}` must be a token's id{bound}, got {token!r:.40} from the generation config. Pass "
                    f"{name}=... to `generate`, or correct the checkpoint's generation_config.json."
                )


def _is_id(token: Any, below: int | None) -> bool:
    token = as_number(token)
    return isinstance(token, int) and token >= -1 and (below is None or token < below)


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _floats(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _floats(inner)
