"""
Reward functions by name: `verify.py:check` of a file, `package.module:check` of an installed package.

For the command line, where a function cannot be passed. Loading one runs the user's own code.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_itp.errors import ArgumentError, ItpError, LoadError

# The colon of `C:\\models` names a drive, and what follows it is no name.
_SPEC = re.compile(r"(?P<place>[^:]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_][\w.]*)")
_REMEDY = "Name a function f(prompts, completions, **kwargs), e.g. verify.py:check or package.module:check."


def names_code(reward_model: str) -> bool:
    """
    Return whether a text names a function of a file or module, rather than a model.

    Examples:

    ```python
    >>> [names_code(text) for text in ("verify.py:check", "package.module:check", "org/model", "C:/models/small")]
    [True, True, False, False]

    ```
    """
    return _SPEC.fullmatch(reward_model) is not None or reward_model.endswith(".py")


def load_code(spec: str) -> Any:
    """
    Return the function (or other reward) that `FILE.py:NAME` or `PACKAGE.MODULE:NAME` names.

    A file is found from the working directory and may import its neighbours, a module also in the working directory.

    Raises:
        `ArgumentError`: If no function is named, or there is none of that name.
        `LoadError`: If the file or module does not exist, or raises when it runs.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        known = _functions_of(Path(spec)) if Path(spec).is_file() else []
        among = f" The file has {', '.join(known)}." if known else ""
        raise ArgumentError(f"`reward_model` must name a function of {spec}, got only the file.{among} {_REMEDY}")
    place, name = found["place"], found["name"]
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    loaded: Any = module
    for part in name.split("."):
        if not hasattr(loaded, part):
            public = [one for one, value in vars(loaded).items() if callable(value) and not one.startswith("_")]
            raise ArgumentError(
                f"`reward_model` must name something in {place}, got {name!r}.{_hint(part, public)} {_REMEDY}"
            )
        loaded = getattr(loaded, part)
    return loaded


def with_code_loaded(reward_models: Sequence[Any]) -> list[Any]:
    """Return reward models with functions in place of the texts that name some, in order."""
    return [load_code(one) if isinstance(one, str) and names_code(one) else one for one in reward_models]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        others = [str(file) for file in folder.glob("*.py")] if folder.is_dir() else []
        raise LoadError(f"`reward_model` must name a file, got none at {path}.{_hint(str(path), others)} {_REMEDY}")
    path = path.resolve()
    # One file is one module, whichever of its functions are asked for.
    known = f"hf_itp_code.{path}"
    if known not in sys.modules:
        _find_in(path.parent)
        specification = importlib.util.spec_from_file_location(known, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[known] = module  # dataclasses look their module up while it runs
        try:
            specification.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[known]
            raise _failed(path, error) from error
    return sys.modules[known]


def _module(name: str) -> ModuleType:
    _find_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        others = [file.stem for file in Path.cwd().glob("*.py")]
        raise LoadError(
            f"`reward_model` must name a module that can be imported, got {name!r}, and there is no {error.name!r}."
            f"{_hint(name, others)} {_REMEDY}"
        ) from error
    except Exception as error:
        raise _failed(name, error) from error


def _find_in(folder: Path) -> None:
    """Let code import from a folder; what is installed goes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _failed(place: Path | str, error: BaseException) -> BaseException:
    if isinstance(error, ItpError) or not isinstance(error, Exception):
        return error
    return LoadError(f"{place} must run to the end, got {type(error).__name__}: {error}. Correct the file.")


def _functions_of(path: Path) -> list[str]:
    """Return what a file defines, without running it."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    try:
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    return [node.name for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")]


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""
