"""How the weights of a family of checkpoints become a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """
    Args:
        loader (`type`): What has the `from_pretrained` to call.
        options (`dict`): Its keywords, beside the caller's.
    """

    loader: Any
    options: Mapping[str, Any] = {}
