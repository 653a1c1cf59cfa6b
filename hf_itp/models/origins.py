"""
Where a loaded model came from: the folder, or the repository and commit, its weights were read from.

transformers 5.24 no longer notes the commit in `config._commit_hash`, peft never noted where an adapter came from, and
a name alone means another commit tomorrow. So three methods that load weights are wrapped to note it on the model they
load; nothing else about them changes, and [`stop_recording`] takes the wrappers off. They can go once both libraries
say it themselves. Imports neither torch nor transformers nor peft: each is wrapped when it is imported.
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
# Beside the model, not on it: a token must not be saved, copied or pickled with it.
_tokens: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# By class and method: ours, and the libraries' own.
_wrappers: dict[tuple[Any, str], tuple[Any, Any]] = {}


@dataclass(frozen=True)
class Origin:
    """
    Args:
        name (`str`): A folder, or a Hub id, as the model itself gives it.
        commit (`str`, *optional*): Of the repository; none of a folder.
        subfolder (`str`, *optional*): In which the weights lie.
        cache_dir (`str`, *optional*): Where its files are kept, if not in the usual cache.
        local_files_only (`bool`, *optional*, defaults to `False`): Whether the Hub was not to be asked.
        candidates (`tuple[str, ...]`): Commits it may be, where it was loaded before anything could note which.
    """

    name: str
    commit: str | None = None
    subfolder: str = ""
    cache_dir: str | None = None
    local_files_only: bool = False
    candidates: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Of `from_pretrained`, for another file of the same place at the same commit."""
        options = {"revision": self.commit, "cache_dir": self.cache_dir, "local_files_only": self.local_files_only}
        return {name: value for name, value in options.items() if value}


def origin_of(model: Any) -> Origin | None:
    """
    Where a model's weights were read from; of an adapted model those of the base. None where it was made in memory.

    What was noted counts as long as the model goes by the name it was loaded by. Without it, `config._commit_hash` of
    transformers before 5.24 is read, then the cache: one commit there can only be that, several are `candidates`.
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
    """Of each active adapter of a peft model; None for one made in memory, or loaded before it could be noted."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return []
    noted = getattr(model, _ADAPTERS, {})
    found: list[Origin | None] = []
    for name in _active_adapters(model):
        config, origin = noted.get(name, (None, None))
        # An adapter of the same name may have taken its place.
        found.append(origin if config is configs.get(name) else None)
    return found


def token_of(model: Any) -> str | bool | None:
    """The Hub token a model was loaded with, if one was passed."""
    return _tokens.get(model)


def folder_state(name: str) -> Hashable:
    """What changes when a folder's files are written anew: each one's name, time and size. None of no folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    states = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return tuple((file_name, state.st_mtime_ns, state.st_size) for file_name, state in states)


def record_origins() -> None:
    """Has models note where they come from, from now on. Doing it twice changes nothing."""
    for module in _WRAPPED:
        _wrap(module)
    _hook.install()


def stop_recording() -> None:
    """Puts the libraries' own methods back, except where another package has wrapped them since."""
    _hook.remove()
    for (owner, method), (wrapper, original) in list(_wrappers.items()):
        if vars(owner)[method] is wrapper:
            setattr(owner, method, original)
            del _wrappers[owner, method]


def _name_of(model: Any) -> str:
    config = getattr(model, "config", None)
    return str(getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")


def _active_adapters(model: Any) -> list[str]:
    # The layers know; transformers' own `active_adapters` refuses releases of peft that load and run all the same.
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
    The commit of a repository whose configuration was just read at `revision`. Asks the cache alone.

    Args:
        name (`str`): A Hub id; a folder has no commit.
        revision (`str`, *optional*): Branch, tag or commit.
        cache_dir (`str`, *optional*): If not the usual one.
        read (`bool`, *optional*, defaults to `False`): Of a revision that is a commit too, see whether it is there.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # huggingface_hub's resolved revision is a text that knows its commit.
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
    if name != asked:  # the base model of an adapter: its commit is none that was asked for
        initial = getattr(options.get("revision"), "initial", None)
        options = {**options, "revision": initial, "subfolder": ""}
    # What transformers before 5.24 notes is sure, what a branch's name leads to in the cache may have moved on.
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
            # transformers passes what it was called with in two dicts.
            hub = {**getattr(names.get("load_config"), "download_kwargs", {}), **(names.get("adapter_kwargs") or {})}
            origin = _noted(str(place), {**hub, **options})
            # peft's `generate` is the one of the model inside.
            for holder in {self, self.get_base_model() if hasattr(self, "get_base_model") else self}:
                vars(holder).setdefault(_ADAPTERS, {})[adapter] = (self.peft_config[adapter], origin)
        return result

    return load_adapter


# By module, the class in it and the methods of it that load weights.
_WRAPPED = {
    "transformers.modeling_utils": ("PreTrainedModel", ("from_pretrained", "load_adapter")),
    "peft.peft_model": ("PeftModel", ("load_adapter",)),
}


def _methods(module: str) -> Iterator[tuple[Any, str]]:
    """Of an imported module, each method with the class that defines it."""
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
