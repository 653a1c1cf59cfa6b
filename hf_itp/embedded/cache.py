"""
Folders in the Hugging Face cache (under `HF_HOME`) that are built once and visible only when complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from huggingface_hub import cached_assets_path

from hf_itp.errors import LoadError


def build_once(name: str, fingerprint: str, build: Callable[[Path], None], announcement: str) -> Path:
    """
    Return the folder that `build` fills, building it on the first call for this fingerprint.

    Builds in a hidden sibling that is renamed when complete, so an interrupted build is never taken for a finished
    one; the next build clears its remains. Of several processes one builds, the others wait.

    Args:
        name (`str`): Start of the folder's name.
        fingerprint (`str`): Everything the content depends on. Another fingerprint is another folder.
        build (`Callable[[Path], None]`): Writes the content into the empty folder it is given.
        announcement (`str`): One line for stderr before a build starts.

    Raises:
        `LoadError`: If the cache cannot be written, or the build cannot read or write its files.
    """
    name = f"{name}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}"
    try:
        folder = _cache() / name
        if not folder.is_dir():
            # The system releases the lock when its holder dies, so a killed build blocks nobody.
            with FileLock(folder.with_name(f".{name}.lock")):
                if not folder.is_dir():
                    print(f"{announcement} in {folder} ...", file=sys.stderr, flush=True)
                    _build_whole(folder, build)
    except OSError as error:
        raise LoadError(
            f"The embedded default must be built in the Hugging Face cache, got: {error}. Make room, or set the "
            "environment variable HF_HOME to a writable folder."
        ) from error
    return folder


def _build_whole(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _cache() -> Path:
    try:
        return cached_assets_path(library_name="hf_itp", namespace="embedded", subfolder="models")
    except ValueError as error:  # a file where a folder must be
        raise NotADirectoryError(str(error)) from None
