"""
Record where a loaded model came from: the folder, or the repository and commit, that its weights were read from.

transformers 5.24 no longer notes the commit in `config._commit_hash`, peft never noted where an adapter came from, and
a name may lead to another commit tomorrow. So three methods that load weights are wrapped to note the origin on the
model they load. Nothing else about them changes, and [`stop_recording`] removes the wrappers. Delete this file once
both libraries record origins. Imports neither torch nor transformers nor peft: each is wrapped when it is imported.
"""

from __future__ import annotations

import functools
import re
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_itp.models.import_hook import ImportHook

_ORIGIN, _ADAPTERS = "_hf_itp_origin", "_hf_itp_adapter_origins"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIGS = ("config.json", "adapter_config.json")
# Kept apart from the models: a token must not be saved, copied or pickled with its model.
_tokens: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# By class and method: our wrapper, and the library's own method.
_wrappers: dict[tuple[Any, str], tuple[Any, Any]] = {}


@dataclass(frozen=True)
class Origin:
    """
    Place that a model's weights were read from.

    Args:
        name (`str`): Folder or Hub id, as the model itself states it.
        commit (`str`, *optional*): Commit of the repository; `None` for a folder, or if it is not known.
        subfolder (`str`, *optional*): Subfolder that holds the weights.
        cache_dir (`str`, *optional*): Cache that holds the files, if not the usual one.
        local_files_only (`bool`, *optional*, defaults to `False`): Whether it was loaded without asking the Hub.
        candidates (`tuple[str, ...]`): Possible commits, if it was loaded before origins were recorded.
    """

    name: str
    commit: str | None = None
    subfolder: str = ""
    cache_dir: str | None = None
    local_files_only: bool = False
    candidates: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Return the keywords of `from_pretrained` for another file of the same place at the same commit."""
        options = {"revision": self.commit, "cache_dir": self.cache_dir, "local_files_only": self.local_files_only}
        return {name: value for name, value in options.items() if value}


def origin_of(model: Any) -> Origin | None:
    """
    Return where a model's weights were read from, or `None` if it was made in memory.

    For an adapted model these are the weights of its base. A recorded origin counts as long as the model has the name
    it was loaded under. Otherwise `config._commit_hash` of transformers before 5.24 is read, then the cache: a single
    commit there must be the right one, several become `candidates`.
    """
    name = _name_of(model)
    if not name:
        return None
    noted = getattr(model, _ORIGIN, None)
    if isinstance(noted, Origin) and noted.name == name:
        return noted
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if commit is not None or Path(name).is_dir():
        return Origin(name, commit)
    cached = _cached_commits(name)
    return Origin(name, cached[0]) if len(cached) == 1 else Origin(name, candidates=tuple(cached))


def adapter_origins(model: Any) -> list[Origin | None]:
    """
    Return the origin of each active adapter of a peft model.

    It is `None` for an adapter made in memory, or loaded before origins were recorded.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return []
    noted = getattr(model, _ADAPTERS, {})
    found: list[Origin | None] = []
    for name in active_adapters(model):
        config, origin = noted.get(name, (None, None))
        # Another adapter may have taken over the name.
        found.append(origin if config is configs.get(name) else None)
    return found


def token_of(model: Any) -> str | bool | None:
    """Return the Hub token a model was loaded with, if one was passed."""
    return _tokens.get(model)


def folder_state(name: str) -> Hashable:
    """Return the names, times and sizes of a folder's files, to tell if one was written again; `None` if no folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    states = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return tuple((file_name, state.st_mtime_ns, state.st_size) for file_name, state in states)


def record_origins() -> None:
    """Record from now on where loaded models come from. Calling it twice changes nothing."""
    for module in _WRAPPED:
        _wrap(module)
    _hook.install()


def stop_recording() -> None:
    """Restore the libraries' own methods, except where another package has wrapped them since."""
    _hook.remove()
    for (owner, method), (wrapper, original) in list(_wrappers.items()):
        if vars(owner)[method] is wrapper:
            setattr(owner, method, original)
            del _wrappers[owner, method]


def _name_of(model: Any) -> str:
    config = getattr(model, "config", None)
    return str(getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")


def active_adapters(model: Any) -> list[str]:
    """Return the names of a model's active adapters, whether peft or transformers holds them."""
    # Ask the layers: transformers' own `active_adapters` refuses releases of peft that load and run nevertheless.
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    found = dict.fromkeys(name for layer in layers if not layer.disable_adapters for name in layer.active_adapters)
    if found:
        return list(found)
    # Prompt learning has no layers.
    active = getattr(model, "active_adapter", None)
    return [active] if isinstance(active, str) else []


def _cached_commits(name: str) -> list[str]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    if not snapshots.is_dir():
        return []
    return sorted(
        folder.name for folder in snapshots.iterdir() if any((folder / config).is_file() for config in _CONFIGS)
    )


def commit_of(name: str, revision: Any, cache_dir: str | None = None, *, read: bool = False) -> str | None:
    """
    Return the commit of a repository whose configuration was just read at `revision`. Asks only the cache.

    Args:
        name (`str`): A Hub id; a folder has no commit.
        revision (`str`, *optional*): Branch, tag or commit.
        cache_dir (`str`, *optional*): Cache to look in, if not the usual one.
        read (`bool`, *optional*, defaults to `False`): Whether to look it up in the cache even if it is a commit.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # A resolved revision of huggingface_hub is a string that also carries its commit.
    known = getattr(revision, "resolved", revision)
    if not read and isinstance(known, str) and _COMMIT.fullmatch(known):
        return known
    if Path(name).expanduser().is_dir():
        return None
    try:
        paths = [try_to_load_from_cache(name, file, revision=known, cache_dir=cache_dir) for file in _CONFIGS]
    except HFValidationError:
        return None
    # .../snapshots/COMMIT/config.json
    return next((Path(path).parent.name for path in paths if isinstance(path, str)), None)


def _noted(name: str, options: dict[str, Any]) -> Origin:
    cache_dir = None if options.get("cache_dir") is None else str(options["cache_dir"])
    is_folder = Path(name).is_dir()
    return Origin(
        name,
        None if is_folder else commit_of(name, options.get("revision"), cache_dir),
        options.get("subfolder") or "",
        cache_dir,
        bool(options.get("local_files_only")),
    )


def _from_pretrained(original: classmethod) -> classmethod:
    load: Callable[..., Any] = original.__func__

    @functools.wraps(load)
    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        asked = args[0] if args else options.get("pretrained_model_name_or_path")
        loaded = load(cls, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if (name := _name_of(model)) and asked is not None:
            _note_model(model, name, str(asked), options)
        return loaded

    return classmethod(from_pretrained)


def _note_model(model: Any, name: str, asked: str, options: dict[str, Any]) -> None:
    if (token := options.get("token")) is not None:
        _tokens[model] = token
    if name != asked:  # the base model of an adapter, whose commit nobody asked for
        initial = getattr(options.get("revision"), "initial", None)
        options = {**options, "revision": initial, "subfolder": ""}
    # The commit that transformers before 5.24 notes is certain; the cache may have moved the branch since.
    known = getattr(model.config, "_commit_hash", None)
    vars(model)[_ORIGIN] = _noted(name, options if known is None else {**options, "revision": known})


def _load_adapter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_adapter(self: Any, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        names = dict(zip(("place", "adapter_name"), args, strict=False)) | options
        place = names.get("place") or names.get("peft_model_id") or names.get("model_id")
        adapter = names.get("adapter_name") or "default"
        if place is not None and adapter in getattr(self, "peft_config", {}):
            # transformers passes on its own arguments in two dicts.
            hub = {**getattr(names.get("load_config"), "download_kwargs", {}), **(names.get("adapter_kwargs") or {})}
            origin = _noted(str(place), {**hub, **options})
            # `generate` of a peft model is that of the model inside, so both hold the origin.
            for holder in {self, self.get_base_model() if hasattr(self, "get_base_model") else self}:
                vars(holder).setdefault(_ADAPTERS, {})[adapter] = (self.peft_config[adapter], origin)
        return result

    return load_adapter


# For each module: a class in it, and the methods of the class that load weights.
_WRAPPED = {
    "transformers.modeling_utils": ("PreTrainedModel", ("from_pretrained", "load_adapter")),
    "peft.peft_model": ("PeftModel", ("load_adapter",)),
}


def _methods(module: str) -> Iterator[tuple[Any, str]]:
    """Yield each method to wrap with the class that defines it; none if the module is not imported."""
    class_name, methods = _WRAPPED[module]
    for method in methods:
        ancestors = getattr(getattr(sys.modules.get(module), class_name, None), "__mro__", ())
        owner = next((ancestor for ancestor in ancestors if method in vars(ancestor)), None)
        if owner is not None:
            yield owner, method


def _wrap(module: str) -> None:
    for owner, method in _methods(module):
        if (owner, method) not in _wrappers:
            original = vars(owner)[method]
            wrapper = (_from_pretrained if method == "from_pretrained" else _load_adapter)(original)
            _wrappers[owner, method] = wrapper, original
            setattr(owner, method, wrapper)


_hook = ImportHook(_WRAPPED, lambda module: _wrap(module.__name__))
