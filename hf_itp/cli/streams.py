"""The program's streams, so that what a console has no letter for is written in escapes and nothing is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hf_itp.errors import LoadError

# Python's own choices, the second where the locale is C. Any other was somebody's wish (PYTHONIOENCODING).
_UNSET = ("strict", "surrogateescape")


@contextmanager
def writing_all() -> Iterator[None]:
    r"""Within, stdout and stderr write `\u6c34` for a letter that their encoding lacks, where they would raise."""
    # The streams as they are now: click puts others in their place where a reader is gone.
    streams: list[Any] = [s for s in (sys.stdout, sys.stderr) if getattr(s, "errors", None) in _UNSET]
    changed = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    for stream, _ in changed:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            # A stream that is closed, or whose reader is gone, needs no way to write any more.
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


def can_write(text: str, encoding: str | None) -> bool:
    """Whether every letter of a text has its place in an encoding; `None` is a stream that takes text as it is."""
    if encoding is None:
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def stdin_text() -> str:
    """
    All of stdin, which is UTF-8 as files of prompts are, whatever the console writes.

    Raises:
        `LoadError`: If it is not; names the byte.
    """
    stream = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if stream is None else decoded(stream.read(), "Stdin", "Send text in UTF-8.")


def decoded(data: bytes, name: str, remedy: str) -> str:
    """
    Text of bytes in UTF-8, without a byte order mark.

    Raises:
        `LoadError`: If they are not UTF-8; names the first byte that does not fit and its line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Of `data`, also where the codec counted from behind the byte order mark.
        offset = len(data) - len(error.object)
        start = error.start + offset
        raise LoadError(
            f"{name} could not be read: byte 0x{data[start]:02x} at offset {start}, in line "
            f"{data.count(bytes([10]), 0, start) + 1}, is not UTF-8. {remedy}"
        ) from error
