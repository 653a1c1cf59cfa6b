"""
Load a policy's checkpoint safely: no pickle, no code unasked, no random weights, no more memory than its files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import cached_files

from hf_itp.errors import ArgumentError, ItpError, LoadError
from hf_itp.models.checkpoint_sizes import check_numbers, check_outline
from hf_itp.models.host_names import ADAPTERS_OF_5_17
from hf_itp.models.origins import Origin, origin_of
from hf_itp.models.repositories import pinned
from hf_itp.policies.tokenizers import brings_tokenizer
from hf_itp.rewards.checkpoints.checkpoint import HUB_OPTIONS, POLICY, Checkpoint, read_checkpoint

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class LoadedPolicy(NamedTuple):
    """A policy in eval mode and its tokenizer; `commit` is the Hub commit of both, `None` for a folder."""

    model: Any  # transformers has no type for a `PreTrainedModel` that generates
    tokenizer: PreTrainedTokenizerBase
    commit: str | None


def load_policy_checkpoint(
    id_or_folder: str,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    auto_class: Any = None,
    argument: str = "model",
    **options: Any,
) -> LoadedPolicy:
    """
    Load a policy and its tokenizer from a folder or a repository, both at one commit.

    Args:
        id_or_folder (`str`): Hub id, local folder or `"embedded"`; may be an adapter's.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): The checkpoint's own by default.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that the checkpoint brings may run.
        auto_class (*optional*): The auto class of transformers that loads it. Chosen by its configuration by default.
        argument (`str`, *optional*, defaults to `"model"`): The caller's name for `id_or_folder`, for errors.
        options: Keywords of `from_pretrained`: `revision`, `token`, `attn_implementation` and more.

    Raises:
        `LoadError`: If it cannot be found or read, is not stored as safetensors, brings code that may not run, lacks
            weights, or describes another model than its files hold.
        `ArgumentError`: If `use_safetensors=False` is passed.
    """
    if not options.setdefault("use_safetensors", True):
        raise ArgumentError(
            "`use_safetensors` must be True, got False: a pickle runs whatever it holds. Leave it out, and convert "
            "the checkpoint where you trust it."
        )
    with _explaining(id_or_folder, argument):
        place = _place(id_or_folder)
        # Read every file at one commit, even if the branch moves meanwhile. Given a branch's name, transformers would
        # replace a pickle by weights that somebody converted in a pull request.
        options |= pinned(place, options)
        hub = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
        checkpoint = read_checkpoint(id_or_folder, place, options, POLICY)
        whole = checkpoint if checkpoint.base is None else checkpoint.base
        _check_safetensors(whole)
        config = AutoConfig.from_pretrained(whole.place, trust_remote_code=trust_remote_code, **_hub(whole))
        auto_class = auto_class or (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
        if not trust_remote_code:
            _check_size(whole, config, auto_class)
        if checkpoint.base is not None and ADAPTERS_OF_5_17:
            options["config"] = config
        model = _model(checkpoint, auto_class, {**options, "dtype": dtype, "trust_remote_code": trust_remote_code})
        at = Origin(place, hub.get("revision"), hub.get("subfolder", ""), hub.get("cache_dir"),
                    bool(hub.get("local_files_only")))  # fmt: skip
        if checkpoint.base is None or brings_tokenizer(at, hub.get("token")):
            source, where = place, hub
        else:
            source, where = whole.place, _hub(whole)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **where)
        if checkpoint.base is not None:
            # transformers takes an adapter's generation config from the base model, which has no recommendation.
            with suppress(OSError):
                model.generation_config = GenerationConfig.from_pretrained(place, **hub)
    return LoadedPolicy(model.eval(), tokenizer, hub.get("revision"))


def check_policy(id_or_folder: str, *, argument: str = "model", **options: Any) -> dict[str, Any]:
    """
    Refuse what [`load_policy_checkpoint`] would, without loading it: for libraries that load a policy by its name.

    Returns:
        `dict`: Keywords to load it with: its commit, and `use_safetensors`.

    Raises:
        `LoadError`: If it cannot be found, is not stored as safetensors, or brings code.
    """
    with _explaining(id_or_folder, argument):
        place = _place(id_or_folder)
        found = pinned(place, options)
        checkpoint = read_checkpoint(id_or_folder, place, {**options, **found}, POLICY)
        _check_safetensors(checkpoint if checkpoint.base is None else checkpoint.base)
    return {**found, "use_safetensors": True}


def with_safe_loading(model: Any, args: Any) -> Any:
    """
    Make a trainer of TRL load safely by name: the policy, if it is given by name, and the reference policy.

    Args:
        model (`str` or `PreTrainedModel`): The policy, or its name.
        args: Arguments of the trainer, with `model_init_kwargs`; not changed.

    Returns:
        The arguments, copied if there is anything to add: safetensors only, at the commit of the policy.

    Raises:
        `LoadError`: As [`check_policy`].
    """
    given = dict(args.model_init_kwargs or {})
    if isinstance(model, str):
        found = check_policy(model, **given)
    else:
        origin = origin_of(model)
        if origin is None or origin.commit is None:
            return args
        found = {**origin.options(), "use_safetensors": True}
    args = copy.copy(args)
    args.model_init_kwargs = {**given, **found}
    return args


def _place(id_or_folder: str) -> str:
    if id_or_folder == "embedded":
        # Imported here, since building it takes packages that nothing else needs.
        from hf_itp.embedded import policy_path

        return str(policy_path())
    path = Path(id_or_folder).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise OSError("the folder holds no config.json.")
        return str(path)
    if id_or_folder.startswith((".", "~", "/")) or "\\" in id_or_folder or id_or_folder.count("/") > 1:
        raise OSError("there is no such folder.")
    return id_or_folder


def _hub(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: value for name, value in checkpoint.hub.items() if value is not None}


def _weight_entries(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the path of the weight file, or of the index of weight files, that transformers would read."""
    named = checkpoint.config.get("transformers_weights")
    for name in [str(named)] if named else [_WEIGHTS, _INDEX]:
        hub = _hub(checkpoint)
        path = cached_file(checkpoint.place, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            yield path


def _weight_files(checkpoint: Checkpoint) -> list[str]:
    entry = next(_weight_entries(checkpoint))
    if not entry.endswith(".index.json"):
        return [entry]
    shards = sorted(set(json.loads(Path(entry).read_text(encoding="utf-8"))["weight_map"].values()))
    return cached_files(checkpoint.place, shards, **_hub(checkpoint)) or []


def _check_safetensors(checkpoint: Checkpoint) -> None:
    if next(_weight_entries(checkpoint), None) is not None:
        return
    if checkpoint.hub.get("local_files_only") and not Path(checkpoint.place).is_dir():
        raise OSError("the cache does not hold all of it, and the Hub was not asked or cannot be reached.")
    raise LoadError(
        f"Policy '{checkpoint.name}' must be stored as safetensors, got none. A pickle such as pytorch_model.bin runs "
        "whatever it holds and is not loaded. Convert it (load it where you trust it, then `save_pretrained`), or ask "
        "its authors to."
    )


def _check_size(checkpoint: Checkpoint, config: Any, auto_class: Any) -> None:
    files = _weight_files(checkpoint)
    check_numbers(checkpoint.name, checkpoint.config, files)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        # The kind of attention changes no weights, and another name might be a kernel to download.
        outline = auto_class.from_config(config, trust_remote_code=False, attn_implementation="eager")
    check_outline(checkpoint.name, outline, files)


def _model(checkpoint: Checkpoint, auto_class: Any, options: dict[str, Any]) -> Any:
    if checkpoint.base is not None:
        # An adapter's revision is not its base model's.
        options["adapter_kwargs"] = {"revision": options.pop("revision", None)}
        options["revision"] = checkpoint.base.hub.get("revision")
    # transformers draws missing weights from the global generator before they can be refused here.
    with torch.random.fork_rng(devices=[]):
        model, info = auto_class.from_pretrained(checkpoint.place, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(f"`{key}`" for key in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise LoadError(
            f"Policy '{checkpoint.name}' must bring all of its weights, got none for {shown}, which would be random. "
            "Save or download the checkpoint again, or name one that was trained to generate."
        )
    return model


@contextmanager
def _explaining(id_or_folder: str, argument: str) -> Iterator[None]:
    """Turn whatever the libraries raise over a checkpoint into one error that names it."""
    try:
        yield
    except (ItpError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # The first line says what is wrong; transformers continues with advice for other situations.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is not run unasked. Read that code, then allow remote code"
        raise LoadError(
            f"`{argument}` {id_or_folder!r} could not be loaded: {reason}. Check the spelling, that a folder holds "
            "both weights and tokenizer, and for a model from the Hub that you are online and have access to it."
        ) from error
