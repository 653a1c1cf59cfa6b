"""
Streamers get a winner once it is known, and are ended whatever happens: a consumer waits for their end.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stream(streamer: Any, input_ids: torch.Tensor, response: torch.Tensor) -> None:
    """Put the prompt and each token of a response, and end the streamer."""
    streamer.put(input_ids.cpu())
    for token in response:
        streamer.put(token[None])
    streamer.end()


@contextmanager
def ended_on_failure(streamer: Any) -> Iterator[None]:
    """End a streamer, once, if what is done within fails."""
    try:
        yield
    except BaseException as error:
        if streamer is not None and getattr(error, "_hf_itp_ended", None) is not streamer:
            error._hf_itp_ended = streamer  # type: ignore[attr-defined]  # an outer call has the same streamer
            with suppress(Exception):  # the error itself tells more
                streamer.end()
        raise
