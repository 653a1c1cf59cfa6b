"""Streams of the program: a console that lacks a letter gets its escape, so nothing is lost; stdin is UTF-8."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hf_itp.errors import LoadError

# Python's own choices, the second in the locale C. Any other is the user's (PYTHONIOENCODING) and stays.
_UNSET = ("strict", "surrogateescape")


@contextmanager
def writing_all() -> Iterator[None]:
    r"""Make stdout and stderr write `\u6c34` for a letter that their encoding lacks, instead of raising."""
    # Keep the current streams: click replaces them once a reader is gone.
    streams: list[Any] = [s for s in (sys.stdout, sys.stderr) if getattr(s, "errors", None) in _UNSET]
    changed = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    for stream, _ in changed:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            # A closed stream, or one without a reader, is not written to again.
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


def can_write(text: str, encoding: str | None) -> bool:
    """Return whether an encoding has every letter of a text; `None` has all."""
    if encoding is None:
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def stdin_text() -> str:
    """
    Return all of stdin, read as UTF-8 whatever the console's encoding.

    Raises:
        `LoadError`: If it is not UTF-8; names the byte.
    """
    stream = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if stream is None else decoded(stream.read(), "Stdin", "Send text in UTF-8.")


def decoded(data: bytes, name: str, remedy: str) -> str:
    """
    Return bytes in UTF-8 as text, without a byte order mark.

    Raises:
        `LoadError`: If they are not UTF-8; names the first byte that is not, and its line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from after a byte order mark.
        offset = len(data) - len(error.object)
        start = error.start + offset
        raise LoadError(
            f"{name} must be UTF-8, got byte 0x{data[start]:02x} at offset {start}, in line "
            f"{data.count(bytes([10]), 0, start) + 1}. {remedy}"
        ) from error
