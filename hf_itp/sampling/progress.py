"""
The bar of a long draw.
"""

from __future__ import annotations

from typing import Any

from transformers.utils import logging as transformers_logging

# A progress bar on a call shorter than this is noise.
_DELAY_SECONDS = 5.0


def responses_bar(total: int, progress: bool | None) -> Any:
    """A bar of `total` responses: always, never, or (`None`) on long calls where somebody watches."""
    return transformers_logging.tqdm(
        total=total,
        desc="Sampling",
        unit=" responses",
        leave=False,
        delay=0.0 if progress else _DELAY_SECONDS,
        disable=None if progress is None else not progress,
    )
