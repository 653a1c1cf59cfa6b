"""
Read the description of a checkpoint before anything in it is loaded or run, and refuse what it must not ask for.

Knows nothing of models: small JSON files in, a description or an error out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import cached_file

from hf_itp.errors import ArgumentError, ItpError, LoadError, RewardModelError
from hf_itp.models.repositories import pinned

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


@dataclass(frozen=True)
class Kind:
    """
    Kind of model that a checkpoint is loaded as.

    Args:
        noun (`str`): For messages.
        error (`type`): The error that refuses a checkpoint.
    """

    noun: str
    error: type[ItpError]


REWARD_MODEL = Kind("reward model", RewardModelError)
POLICY = Kind("policy", LoadError)

_COMMIT = re.compile(r"[0-9a-f]{40}")
# `module.Class` beside the weights, or in another repository: `org/name--module.Class`.
_CODE = re.compile(r"(?:(?P<repository>[\w.-]+/[\w.-]+)--)?[A-Za-z_]\w*\.[A-Za-z_]\w*")
_SAFE_FILE = re.compile(r"[\w][\w.-]*\.safetensors(?:\.index\.json)?")


@dataclass(frozen=True)
class Checkpoint:
    """
    Description of a checkpoint, from its small files.

    Args:
        name (`str`): The caller's name for it.
        place (`str`): A folder, or a Hub id.
        config (`dict`): Its config.json; empty without one.
        adapter (`dict`): Its adapter_config.json; empty for a whole model.
        code (`dict`): The classes it brings code for, by auto class: `{"AutoModel": "modeling.Class"}`.
        kind ([`Kind`]): What it is loaded as.
        base (`Checkpoint`, *optional*): An adapter's base model.
        hub (`dict`): The keywords it was read with: `revision`, `token` and others of `from_pretrained`.
    """

    name: str
    place: str
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = REWARD_MODEL
    base: Checkpoint | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brings_model_code(self) -> bool:
        """Whether it brings its model class."""
        return any(name.startswith("AutoModel") for name in self.code)

    @property
    def architecture(self) -> str:
        """The name of the model class its weights were saved from, `""` if unknown."""
        return next(iter(self.config.get("architectures") or []), "")


class Layout(NamedTuple):
    """
    Way in which the weights of a family of checkpoints become a model.

    Args:
        loader (`type`): The class whose `from_pretrained` loads them.
        options (`dict`): Its keywords, beside the caller's.
    """

    loader: Any
    options: Mapping[str, Any] = {}


def read_checkpoint(name: str, place: str, options: Mapping[str, Any], kind: Kind = REWARD_MODEL) -> Checkpoint:
    """
    Read the description of a checkpoint and run nothing in it.

    Args:
        name (`str`): The caller's name for it, for messages.
        place (`str`): A folder, or a Hub id.
        options (`dict`): Keywords of `from_pretrained`; only those that say where on the Hub are used.
        kind ([`Kind`]): What it is loaded as.

    Raises:
        `OSError`, `ValueError`: If it cannot be reached or read.
        `RewardModelError`, `LoadError`: If it names weights that are not safetensors or lie elsewhere, a kernel to
            download, or a change to anything but the model.
    """
    hub = {option: options[option] for option in HUB_OPTIONS if options.get(option) is not None}
    config = _read_json(place, "config.json", hub)
    code = _classes(config) | _classes(_read_json(place, "tokenizer_config.json", hub))
    adapter, base = _read_json(place, "adapter_config.json", hub), None
    if adapter:
        _check_adapter(name, place, adapter, hub, kind)
        # Where a folder holds a whole model and an adapter, the adapter is for that model.
        if not (config and Path(place).is_dir()):
            base = _base_of_adapter(name, place, adapter, hub, kind)
            code |= base.code
    _check_weights(name, config, _read_json(place, "model.safetensors.index.json", hub), kind)
    _check_reach(name, config, options, kind)
    return Checkpoint(name, place, config, {} if base is None else adapter, code, kind, base, hub)


def check_remote_code(name: str, place: str, trust_remote_code: bool, revision: str | None) -> None:
    """
    Refuse code from the Hub that its owner could still change.

    Raises:
        `ArgumentError`: If code may run and the revision is not a commit.
    """
    if trust_remote_code and not Path(place).is_dir() and not _COMMIT.fullmatch(revision or ""):
        raise ArgumentError(
            f"`revision` must be a commit (40 hexadecimal digits) with trust_remote_code=True, got {revision!r}: the "
            f"owner of '{name}' could change the code that runs. Read the code at one commit and pass that."
        )


def check_code(checkpoint: Checkpoint, code_revision: str | None) -> None:
    """
    Refuse code from anywhere but the checkpoint the caller trusts.

    Raises:
        `RewardModelError`: If the code lies outside the checkpoint, or the checkpoint is an adapter (its base model is
            read without a fixed commit).
        `ArgumentError`: If the code lies in another repository and `code_revision` is not a commit.
    """
    if checkpoint.adapter and checkpoint.code:
        raise RewardModelError(
            f"Adapter '{checkpoint.name}' brings code of its own, which never runs for adapters. Merge it into its "
            "base model and load that."
        )
    for reference in checkpoint.code.values():
        match = _CODE.fullmatch(reference)
        if match is None:
            raise RewardModelError(
                f"Code of reward model '{checkpoint.name}' must lie beside its weights, got {reference!r:.80} in its "
                "configuration. Do not run it."
            )
        if match["repository"] and not _COMMIT.fullmatch(code_revision or ""):
            raise ArgumentError(
                f"`code_revision` must be a commit (40 hexadecimal digits) for code of another repository "
                f"({match['repository']}), got {code_revision!r}. Read the code at one commit and pass that."
            )


def _read_json(place: str, file: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    path = cached_file(place, file, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return {}
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} does not hold an object.")
    return found


def _classes(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the `auto_map` of a configuration; tokenizers list a slow and a fast class."""
    named = config.get("auto_map") or {}
    if not isinstance(named, Mapping):
        named = {"AutoTokenizer": named}
    found = {}
    for auto_class, value in named.items():
        for position, reference in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if reference is not None:
                found[auto_class + "+" * position] = str(reference)
    return found


def _check_weights(name: str, config: Mapping[str, Any], index: Mapping[str, Any], kind: Kind) -> None:
    files = {config["transformers_weights"]} if config.get("transformers_weights") else set()
    weight_map = index.get("weight_map") or {}
    files |= set(weight_map.values()) if isinstance(weight_map, Mapping) else {weight_map}
    for file in sorted(map(str, files)):
        if not _SAFE_FILE.fullmatch(file):
            raise kind.error(
                f"Weights of {kind.noun} '{name}' must be safetensors beside its configuration, got {file!r:.80}. "
                "Convert them (load it where you trust it, then `save_pretrained`), or ask its authors to."
            )


def _check_adapter(name: str, place: str, adapter: Mapping[str, Any], hub: Mapping[str, Any], kind: Kind) -> None:
    if cached_file(place, "adapter_model.safetensors", _raise_exceptions_for_missing_entries=False, **hub) is None:
        raise kind.error(
            f"Adapter '{name}' must be stored as safetensors, got no adapter_model.safetensors. Convert it "
            "(load it where you trust it, then `save_pretrained`), or ask its authors to."
        )
    if adapter.get("megatron_config"):
        # peft before 0.19 imports whatever module it names.
        raise kind.error(
            f"The configuration of adapter '{name}' names a module to import, {adapter.get('megatron_core')!r:.80}. "
            "Remove `megatron_config` from adapter_config.json."
        )


def _base_of_adapter(
    name: str, place: str, adapter: Mapping[str, Any], hub: Mapping[str, Any], kind: Kind
) -> Checkpoint:
    base = str(adapter.get("base_model_name_or_path") or "")
    is_path = base.startswith((".", "~", "/")) or base.count("/") > 1 or "\\" in base
    if not base or (is_path and not Path(place).is_dir()):
        raise kind.error(
            f"Adapter '{name}' must name its base model{' by a Hub id' if base else ''}, got {base!r:.80}. "
            "Correct `base_model_name_or_path` in adapter_config.json, or merge the adapter and load that."
        )
    own = {option: hub.get(option) for option in ("token", "cache_dir", "local_files_only")}
    own["revision"] = adapter.get("revision")
    return read_checkpoint(base, base, own | pinned(base, own), kind)


def _check_reach(name: str, config: Mapping[str, Any], options: Mapping[str, Any], kind: Kind) -> None:
    for key, value in _entries(config):
        for option in ("attn_implementation", "experts_implementation"):
            # Under its private name the caller's own does not take its place.
            if option in key and "/" in str(value) and not (key == option and option in options):
                raise kind.error(
                    f"The configuration of {kind.noun} '{name}' asks for a kernel from the Hub, {value!r:.80}, which "
                    'is code. Pass `attn_implementation="sdpa"` or the one you want.'
                )
    if config.get("fusion_config"):
        # It patches classes of transformers for the whole process.
        raise kind.error(
            f"The configuration of {kind.noun} '{name}' changes transformers' classes, by `fusion_config`. Remove it "
            "from config.json, and pass `fusion_config=` yourself if you want it."
        )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
            yield from ((str(key), inner) for inner in value.values())
        else:
            yield str(key), value
