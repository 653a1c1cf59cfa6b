"""
Turn numbers and arrays of other libraries into ours: wherever a number or a tensor goes.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch

from hf_itp.errors import ArgumentTypeError

# Kinds of numpy's numbers that torch lacks: large unsigned integers, floats beyond 64 bits.
_NOT_IN_TORCH = {"u2": np.int64, "u4": np.int64, "u8": np.int64, "f12": np.float64, "f16": np.float64}


def as_number(value: Any) -> int | float | None:
    """
    Return a real number as a plain Python number, `None` for anything else.

    Accepts Python's and numpy's numbers, and tensors and arrays without dimensions. A bool is not a number.

    Examples:

    ```python
    >>> import torch
    >>> as_number(torch.tensor(3)), as_number(0.5), as_number(True), as_number("3")
    (3, 0.5, None, None)

    ```
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # Also numpy's numbers: JSON, repr and tensor arithmetic are only sure of a plain one.
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def as_tensor(values: Any, name: str) -> torch.Tensor:
    """
    Return numbers or bools as a tensor: a tensor as it is, anything else copied to the CPU.

    Takes arrays, lists and tuples (of numbers, arrays or tensors), pandas objects and columns of data sets. An array
    keeps its precision; Python's floats become float64, whatever torch's default is.

    Args:
        values: What a caller gave.
        name (`str`): The argument's name, for the message.

    Raises:
        `ArgumentTypeError`: If an entry is no number, or rows differ in length; names the place.

    Examples:

    ```python
    >>> as_tensor([[0.5, 1.0]], "rewards")
    tensor([[0.5000, 1.0000]], dtype=torch.float64)

    ```
    """
    if isinstance(values, torch.Tensor):
        return values
    if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
        parts = [as_tensor(value, name) for value in values]
        if len({(part.shape, part.dtype, part.device) for part in parts}) == 1:
            return torch.stack(parts)
        values = [part.tolist() for part in parts]
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.empty(0, dtype=object)  # rows of different lengths
    # A masked entry would come out as the number below the mask.
    if array.dtype.kind not in "biuf" or np.ma.is_masked(values):
        raise ArgumentTypeError(
            f"`{name}` must be real numbers in a tensor, an array or a list with rows of equal length, got "
            f"{_no_numbers(values)}. Give every candidate its number, e.g. [[0.5, 1.0], [0.2, 0.1]]."
        )
    dtype = _NOT_IN_TORCH.get(array.dtype.str[1:], array.dtype.newbyteorder("="))
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def as_floats(values: Any, name: str) -> torch.Tensor:
    """Return real numbers as a floating-point tensor: see [`as_tensor`]. Integers become float64; no bools."""
    tensor = as_tensor(values, name)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ArgumentTypeError(f"`{name}` must hold real numbers, got dtype {tensor.dtype}. Convert it first.")
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def _no_numbers(values: Any) -> str:
    """Describe what keeps values from being a tensor: the first entry that is no number, or the rows' lengths."""
    if not isinstance(values, (list, tuple)):
        masked = "masked entries in " if np.ma.is_masked(values) else ""
        return f"{masked}a {type(values).__name__}" + (f" of dtype {values.dtype}" if hasattr(values, "dtype") else "")
    entries = [(f"[{place}]", value) for place, value in enumerate(values)]
    while entries:  # depth by depth
        for place, value in entries:
            is_row = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0
            if not is_row and as_number(value) is None and not isinstance(value, bool):
                return f"{value!r:.40} at {place}"
        rows = [(place, value) for place, value in entries if isinstance(value, (list, tuple))]
        entries = [(f"{place}[{index}]", inner) for place, row in rows for index, inner in enumerate(row)]
    return "rows of different lengths, or integers beyond 64 bits"
