"""
Refuse a configuration whose model would be far larger than the weights stored with it, before it takes any memory.

A configuration is a page of text, and one number in it can ask for more memory than the machine has. The safetensors
can be believed, since every number in them was stored and sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from safetensors import safe_open

from hf_itp.errors import LoadError

# A model has no more layers than stored tensors, unless layers share tensors. This many layers cost nothing anyway.
_LAYERS_ANYWAY = 128
# Quantized weights are packed, up to 32 in one stored number, and some weights are tied.
_NUMBERS_PER_STORED = 64
_NUMBERS_ANYWAY = 2**24
_LARGEST = 2**31
_LAYERS = re.compile(r"layers?$")
_SIZES = re.compile(r"(size|dim|embd|inner|positions?|embeddings|heads?|experts|layers?|length|channels|groups|rank)$")


def check_numbers(name: str, config: Mapping[str, Any], files: Sequence[str]) -> None:
    """
    Refuse a config.json with sizes that its weights cannot have, before the model is even outlined.

    Args:
        name (`str`): Name the caller passed, for messages.
        config (`dict`): Content of the config.json.
        files (`list[str]`): Paths of the safetensors.

    Raises:
        `LoadError`: If there are more layers than stored tensors, or a size is larger than any model's.
    """
    tensors = sum(1 for _ in _stored(files))
    for key, value in _integers(config):
        largest = max(_LAYERS_ANYWAY, tensors) if _LAYERS.search(key) else _LARGEST
        if value > largest and (_LAYERS.search(key) or _SIZES.search(key)):
            raise LoadError(
                f"The configuration of policy '{name}' must match its weights, got `{key}` {value:.3g} for files with "
                f"{tensors} tensors. Do not use it, or correct its config.json."
            )


def check_outline(name: str, outline: torch.nn.Module, files: Sequence[str]) -> None:
    """
    Refuse a model that is many times larger than its files.

    Args:
        name (`str`): Name the caller passed, for messages.
        outline (`torch.nn.Module`): The model on the meta device: shapes without memory.
        files (`list[str]`): Paths of the safetensors.

    Raises:
        `LoadError`: If it would hold many times as many numbers as are stored.
    """
    stored = sum(prod(shape) for shape in _stored(files))
    described = sum(value.numel() for value in (*outline.parameters(), *outline.buffers()))
    if described > _NUMBERS_PER_STORED * stored + _NUMBERS_ANYWAY:
        raise LoadError(
            f"The configuration of policy '{name}' must match its weights, got a model of {described:.3g} numbers for "
            f"files with {stored:.3g}. Do not use it, or correct its config.json."
        )


def _stored(files: Sequence[str]) -> Iterator[tuple[int, ...]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  it is not a dict
                yield tuple(file.get_slice(key).get_shape())


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _integers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(key), value
