"""
Load a reward model from its checkpoint. Weights that would be random are an error.

Knows nothing of scoring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.errors import ArgumentError, LoadError, RewardModelError
from hf_itp.models.host_names import ADAPTERS_OF_5_17
from hf_itp.models.repositories import pinned
from hf_itp.rewards.checkpoints.checkpoint import (
    HUB_OPTIONS,
    Checkpoint,
    Layout,
    check_code,
    check_remote_code,
    read_checkpoint,
)
from hf_itp.rewards.options import ScoringOptions

# Value heads of TRL, OpenRLHF's critics and others, which classifiers do not read.
_OTHER_HEAD = re.compile(r"^(v_head|value_head|reward_head|score_head|regression_head|regression_layer)\.")

_CONFIGS = ("config.json", "adapter_config.json")

_R = TypeVar("_R")


class Loaded(NamedTuple):
    """A model, its tokenizer and the commit on the Hub they were read from, `None` for a folder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    commit: str | None


def load(
    id_or_folder: str,
    layout_of: Callable[[Checkpoint], Layout],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | int | torch.device | None = None,
    device_map: str | dict | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    **options: Any,
) -> Loaded:
    """
    Load a checkpoint's model and tokenizer.

    Args:
        id_or_folder (`str`): Hub id, local folder or `"embedded"`.
        layout_of (`Callable`): Returns how to load a checkpoint, or refuses it.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Replaces the checkpoint's own.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether its code may run, if the layout needs it.
        code_revision (`str`, *optional*): Commit of the other repository that holds its code.
        options: As in `from_pretrained`, like the other arguments.

    Raises:
        `LoadError`: If checkpoint or tokenizer cannot be found or read.
        `RewardModelError`: If it is not a reward model, or holds or names what is never loaded.
        `ArgumentError`: If its code would run without a fixed commit.
    """
    if device is not None and device_map is not None:
        raise ArgumentError(
            f"`device` must be left out where `device_map` is given, got {device!r} and {device_map!r}. Drop one of "
            "them."
        )
    options |= {name: value for name, value in {"revision": revision, "token": token}.items() if value is not None}
    place = _existing(id_or_folder)
    check_remote_code(id_or_folder, place, trust_remote_code, revision)
    with _explaining(id_or_folder):
        # All files are of one commit, even if a branch moves meanwhile. Asked for a branch that holds a pickle,
        # transformers would load weights that somebody's pull request converted.
        reached = pinned(place, options)
        options |= reached
        checkpoint = read_checkpoint(id_or_folder, place, options)
    if trust_remote_code:
        check_code(checkpoint, code_revision)
    layout = layout_of(checkpoint)
    code = {"code_revision": code_revision} if code_revision is not None else {}
    if tokenizer is None:
        own = trust_remote_code and "AutoTokenizer" in checkpoint.code
        where = {name: value for name, value in options.items() if name in HUB_OPTIONS}
        tokenizer = load_tokenizer(id_or_folder, trust_remote_code=own, **where, **(code if own else {}))
    if layout.options.get("trust_remote_code"):
        options |= code
    model = load_model(checkpoint, layout, dtype=dtype or "auto", device_map=device_map, **options)
    if device is not None:
        model.to(torch.device(device))  # type: ignore[arg-type]
    return Loaded(model, tokenizer, reached.get("revision"))


def load_as(
    reward_class: Callable[..., _R],
    options: type[ScoringOptions],
    id_or_folder: str,
    layout_of: Callable[[Checkpoint], Layout],
    keywords: Mapping[str, Any],
) -> _R:
    """
    Load a reward model of a class. Of `keywords`, the options go to its constructor and the others to [`load`].

    Raises:
        `ItpError`: As [`load`] and the constructor.
    """
    own, others = options.split(keywords)
    options(**own)  # so that a bad one is known before anything is read
    loaded = load(id_or_folder, layout_of, **others)
    reward: Any = reward_class(loaded.model, loaded.tokenizer, **own)
    reward.name, reward.revision = id_or_folder, loaded.commit
    return reward


def load_model(checkpoint: Checkpoint, layout: Layout, **options: Any) -> PreTrainedModel:
    """
    Load the model of a checkpoint in eval mode, from safetensors only: a pickle runs the code it holds.

    Args:
        checkpoint ([`Checkpoint`]): Its description.
        layout ([`Layout`]): How to load it.
        options: The caller's, forwarded to `from_pretrained`.

    Raises:
        `LoadError`: If its weights cannot be found or read.
        `RewardModelError`: If it is of another architecture, or some weights would be random.
    """
    if not options.get("use_safetensors", True):
        raise ArgumentError(
            f"`use_safetensors` must be True, got {options['use_safetensors']!r}: a pickle runs the code it holds. "
            "Drop it, and convert the checkpoint where you trust it."
        )
    # Mismatched shapes are reported by name below, instead of in a table in the log.
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    # The caller's labels take precedence over the family's.
    options = {"trust_remote_code": False, **layout.options, **options}
    if checkpoint.base is not None:
        # The base model has a revision of its own.
        options["adapter_kwargs"] = {"revision": options.pop("revision", None)}
        options["revision"] = checkpoint.base.hub.get("revision")
    # transformers draws missing weights from the global generator before they can be refused.
    offline = bool(options.get("local_files_only"))
    with _explaining(checkpoint.name, offline), torch.random.fork_rng(devices=[]):
        model, info = layout.loader.from_pretrained(checkpoint.place, **options)
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"])
        raise RewardModelError(
            f"Weights of reward model '{checkpoint.name}' must fit its configuration, which expects `{name}` of shape "
            f"{tuple(expected)}, got shape {tuple(stored)}. Pass `num_labels={stored[0]}`, or drop the "
            "`num_labels` you passed."
        )
    random = sorted(info["missing_keys"]) or _head_outside_adapter(model)
    others = sorted(key for key in info["unexpected_keys"] if _OTHER_HEAD.search(key))
    if random or others:
        raise _untrained(checkpoint.name, random, others)
    return model.eval()


def load_tokenizer(id_or_folder: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; raise `LoadError` if it has none."""
    remedy = "Pass `tokenizer=` with the tokenizer the reward model was trained with."
    place = _existing(id_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **{"trust_remote_code": False, **options})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and not Path(place).is_dir():
            raise _explained(error, id_or_folder, bool(options.get("local_files_only"))) from None
        raise LoadError(
            f"The tokenizer of reward model '{id_or_folder}' could not be loaded: {_first_line(error)} {remedy}"
        ) from None
    # Without its files BERT's tokenizer has only the special tokens, and every word would be unknown.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise LoadError(f"Reward model '{id_or_folder}' must bring its tokenizer, got no vocabulary. {remedy}")
    return tokenizer


def local_name(id_or_folder: str) -> str:
    """Return the id or folder itself, for `"embedded"` its folder."""
    if id_or_folder != "embedded":
        return id_or_folder
    # Imported here: building the embedded default takes packages that nothing else needs.
    from hf_itp.embedded import reward_model_path

    return str(reward_model_path())


def _existing(id_or_folder: str) -> str:
    id_or_folder = local_name(id_or_folder)
    path = Path(id_or_folder).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in _CONFIGS):
            raise LoadError(
                f"The folder of a reward model must hold a config.json, got '{id_or_folder}' without one. Pass the "
                "folder `save_pretrained` wrote to."
            )
        return str(path)
    if id_or_folder.startswith((".", "~", "/")) or "\\" in id_or_folder or id_or_folder.count("/") > 1:
        raise LoadError(
            f"`reward_model` must be an existing folder or a Hub id, got '{id_or_folder}', which does not exist. "
            "Correct the path, or pass an id such as 'org/name'."
        )
    return id_or_folder


@contextmanager
def _explaining(id_or_folder: str, offline: bool = False) -> Iterator[None]:
    """
    Turn the libraries' errors into ours, with a remedy; `offline` if only the cache was read.
    """
    try:
        yield
    except (ArgumentError, RewardModelError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explained(error, id_or_folder, offline) from None


def _untrained(name: str, random: list[str], others: list[str]) -> RewardModelError:
    shown = ", ".join(f"`{key}`" for key in random[:3]) + (", ..." if len(random) > 3 else "")
    if others:
        also = f" and does not hold {shown}" if random else ""
        return RewardModelError(
            f"The head of reward model '{name}', `{others[0]}`, is of an unknown kind{also}, so its rewards would not "
            "be the trained ones. Convert it to a `...ForSequenceClassification` checkpoint, or pass a "
            "callable f(prompts, completions, **kwargs) that scores with the library it was trained with."
        )
    if ADAPTERS_OF_5_17 and any(".modules_to_save." in key for key in random):
        return RewardModelError(
            f"The head of adapter '{name}', {shown}, is not read by transformers 5.17, so its rewards would be "
            "random. Install transformers>=5.18, or merge the adapter into its base model (`merge_and_unload`)."
        )
    return RewardModelError(
        f"A reward model must bring a trained head, got '{name}' without {shown}, so its rewards would be "
        "random. Pass a model trained as a reward model (a `...ForSequenceClassification` checkpoint); load a "
        "process reward model with `ProcessRewardModel`; pass a judge as a callable f(prompts, completions, **kwargs)."
    )


def _explained(error: Exception, id_or_folder: str, offline: bool = False) -> LoadError | RewardModelError:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        return RewardModelError(
            f"Reward model '{id_or_folder}' brings code of its own, which does not run by default. Read that code, "
            "then pass `trust_remote_code=True`."
        )
    folder = Path(local_name(id_or_folder)).expanduser()
    if offline and "file named" in reason and not folder.is_dir():
        reason = "the cache does not hold all of it, and the Hub was not asked or cannot be reached."
    if "file named model.safetensors" in reason and (not folder.is_dir() or any(folder.glob("*.bin"))):
        return RewardModelError(
            f"Reward model '{id_or_folder}' must be stored as safetensors, got none. A pickle such as "
            "pytorch_model.bin runs the code it holds and is not loaded. Convert it (load it where you trust it, then "
            "`save_pretrained`), or ask its authors to."
        )
    if isinstance(error, ValueError) and reason.startswith(("Unrecognized configuration", "The checkpoint you are")):
        return RewardModelError(
            f"Reward model '{id_or_folder}' must be a sequence classifier that transformers knows: {reason} Pass a "
            "RewardFunction or a callable that scores with this model."
        )
    if folder.is_dir():
        return LoadError(
            f"Reward model '{id_or_folder}' could not be read: {reason} Save or download the checkpoint again."
        )
    return LoadError(
        f"Reward model '{id_or_folder}' could not be loaded: {reason} Correct the id, check the connection, log in "
        "with `hf auth login` if the repository is private or gated, or pass a local folder."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith((".", "!", "?")) else f"{lines[0]}."


def _head_outside_adapter(model: PreTrainedModel) -> list[str]:
    # For an adapter transformers reports the weights that the adapter lacks, not those that its base model lacked.
    if not getattr(model, "_hf_peft_config_loaded", False):
        return []
    heads = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    return [] if any(".modules_to_save." in name for name in heads) else heads
