"""
Folders that are built once, in the Hugging Face cache (so `HF_HOME` decides where), and only ever seen whole.
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
    The folder that `build` fills, built on the first call for this fingerprint and returned at once afterwards.

    The work happens in a hidden sibling that is renamed when it is complete, so an interrupted build is never taken
    for a finished one; what it left behind goes with the next build. Of several processes one builds, the others wait.

    Args:
        name (`str`): What is built; the folder's name starts with it.
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
            # Released by the system when its holder dies, so a killed build blocks nobody.
            with FileLock(folder.with_name(f".{name}.lock")):
                if not folder.is_dir():
                    print(f"{announcement} in {folder} ...", file=sys.stderr, flush=True)
                    _build_whole(folder, build)
    except OSError as error:
        raise LoadError(
            f"The embedded default could not be built in the Hugging Face cache: {error}. Make room or set the "
            "environment variable HF_HOME to a folder that can be written."
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
    except ValueError as error:  # a file where a folder has to be
        raise NotADirectoryError(str(error)) from None
