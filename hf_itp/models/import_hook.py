"""
Run a function on given modules whenever they are loaded, without importing them.

Knows nothing of what the function does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportHook(MetaPathFinder):
    """
    Import hook that calls `on_load` after each load of one of the modules.

    It stays installed, since a module may be looked for without being imported, and may be reloaded.

    Args:
        modules (`Collection[str]`): Full names of the modules.
        on_load (`Callable[[ModuleType], None]`): Called with the loaded module.
        on_other (`Callable[[], None]`, *optional*): Called when any other module is looked for.
    """

    def __init__(
        self,
        modules: Collection[str],
        on_load: Callable[[ModuleType], None],
        on_other: Callable[[], None] | None = None,
    ):
        self._modules, self._on_load, self._on_other = modules, on_load, on_other

    def install(self) -> None:
        """Put the hook before all other finders. Installing it twice changes nothing."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Remove the hook from the finders."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            if self._on_other is not None:
                self._on_other()
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._on_load)
                return spec
        return None


class _Loader(Loader):
    def __init__(self, loader: Loader, on_load: Callable[[ModuleType], None]):
        self._loader, self._on_load = loader, on_load

    def __getattr__(self, name: str) -> Any:
        # Source look-ups and resource readers ask the loader for more than the two methods below.
        if name == "_loader":  # while a copy is made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._on_load(module)
