"""
A reward model's checkpoint, read so that nothing in it is silently random.

Knows nothing of scoring.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_itp.errors import ArgumentError, LoadError, RewardModelError

_CONFIGS = ("config.json", "adapter_config.json")


def load_model(id_or_folder: str, **options: Any) -> PreTrainedModel:
    """
    The sequence-classification model of a checkpoint, in eval mode.

    Args:
        id_or_folder (`str`): Hub id or local folder.
        options: Forwarded to `AutoModelForSequenceClassification.from_pretrained`.

    Raises:
        `LoadError`: If the checkpoint cannot be found or read.
        `RewardModelError`: If it is no reward model: another architecture, or weights that would be random.
    """
    _refuse_other_layouts(id_or_folder, options)
    return load_weights(AutoModelForSequenceClassification, id_or_folder, **options)


def load_weights(auto_class: Any, id_or_folder: str, **options: Any) -> PreTrainedModel:
    """
    [`load_model`] for any of transformers' auto classes.

    Safetensors alone: a pickle runs what it holds.
    """
    # Mismatched shapes are let through to be reported by name below, instead of in a table in the log.
    options = {"use_safetensors": True, **options, "output_loading_info": True, "ignore_mismatched_sizes": True}
    place = _existing(id_or_folder)
    try:
        # What the checkpoint lacks is drawn at random before it can be refused, from the caller's generator.
        with torch.random.fork_rng(devices=[]):
            model, info = auto_class.from_pretrained(place, **options)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explained(error, id_or_folder) from None
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"])
        raise RewardModelError(
            f"Weights of reward model '{id_or_folder}' have to fit its configuration, but `{name}` is stored with "
            f"shape {tuple(stored)} where {tuple(expected)} is expected. Pass `num_labels={stored[0]}`, or drop the "
            "`num_labels` you passed."
        )
    random = sorted(info["missing_keys"]) or _head_outside_adapter(model)
    if random:
        shown = ", ".join(f"`{name}`" for name in random[:3]) + (", ..." if len(random) > 3 else "")
        raise RewardModelError(
            f"A reward model has to bring a trained head, but '{id_or_folder}' does not hold {shown}, so its rewards "
            "would be random. Pass a model trained as a reward model (a `...ForSequenceClassification` checkpoint)."
        )
    return model.eval()


def check_remote_code(id_or_folder: str, trust_remote_code: bool, revision: str | None) -> None:
    """
    Raises:
        `ArgumentError`: If code of a Hub repository is to run that may change: the revision is no commit.
    """
    is_local = Path(local_name(id_or_folder)).expanduser().is_dir()
    if trust_remote_code and not is_local and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ArgumentError(
            f"`revision` has to be a commit (40 hexadecimal digits) with trust_remote_code=True, but is {revision!r}: "
            f"who owns '{id_or_folder}' could change the code that runs. Read the code at one commit and pass that."
        )


def load_tokenizer(id_or_folder: str, **options: Any) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. A checkpoint without one is a `LoadError`."""
    remedy = "Pass `tokenizer=` with the tokenizer the reward model was trained with."
    place = _existing(id_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and not Path(place).is_dir():
            raise _explained(error, id_or_folder) from None
        raise LoadError(
            f"The tokenizer of reward model '{id_or_folder}' could not be loaded: {_first_line(error)} {remedy}"
        ) from None
    # Without its files BERT's tokenizer comes up with the special tokens alone, and every word would be unknown.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise LoadError(f"Reward model '{id_or_folder}' has to bring its tokenizer, but holds no vocabulary. {remedy}")
    return tokenizer


def local_name(id_or_folder: str) -> str:
    """The id or folder itself, or the folder `"embedded"` stands for."""
    if id_or_folder != "embedded":
        return id_or_folder
    # Only now: building the embedded default takes packages that nothing else needs.
    from hf_itp.embedded import reward_model_path

    return str(reward_model_path())


def loaded_commit(id_or_folder: str, revision: str | None = None) -> str | None:
    """The commit on the Hub that a checkpoint just loaded was read from; none for a folder. Asks the cache alone."""
    place = local_name(id_or_folder)
    if Path(place).expanduser().is_dir():
        return None
    try:
        paths = [try_to_load_from_cache(place, name, revision=revision) for name in _CONFIGS]
    except HFValidationError:
        return None
    # .../snapshots/COMMIT/config.json
    return next((Path(path).parent.name for path in paths if isinstance(path, str)), None)


def _existing(id_or_folder: str) -> str:
    id_or_folder = local_name(id_or_folder)
    path = Path(id_or_folder).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in _CONFIGS):
            raise LoadError(
                f"The folder of a reward model has to hold a config.json, but '{id_or_folder}' does not. Pass the "
                "folder `save_pretrained` wrote to."
            )
        return str(path)
    if id_or_folder.startswith((".", "~", "/")) or "\\" in id_or_folder or id_or_folder.count("/") > 1:
        raise LoadError(
            f"`reward_model` has to be an existing folder or a Hub id, but '{id_or_folder}' does not exist. Correct "
            "the path, or pass an id such as 'org/name'."
        )
    return id_or_folder


def _refuse_other_layouts(id_or_folder: str, options: dict[str, Any]) -> None:
    """Refuses, by what its configuration says, a checkpoint that is no scalar reward model, with the reason."""
    hub = {name: options[name] for name in ("revision", "token") if name in options}
    try:
        config, _ = PreTrainedConfig.get_config_dict(_existing(id_or_folder), **hub)
    except (OSError, ValueError):
        return  # loading the model says what is wrong
    own = config.get("auto_map") or {}
    if "AutoModelForSequenceClassification" in own and not options.get("trust_remote_code"):
        raise _brings_code(id_or_folder)
    architectures = [] if own else config.get("architectures") or []
    kind = config.get("model_type") or ""
    for pattern, reason, remedy in _OTHER_LAYOUTS:
        if any(re.search(pattern, name) for name in [*architectures, kind]):
            raise RewardModelError(f"Reward model '{id_or_folder}' {reason}. {remedy}")


# Layouts of checkpoints that `AutoModelForSequenceClassification` would load with a random head, or not at all.
_OTHER_LAYOUTS = (
    (
        r"ForTokenClassification|ForProcessRewardModel",
        "judges steps, not responses",
        "Load it with `ProcessRewardModel.from_pretrained(..., step_token=...)`.",
    ),
    (
        r"PairRM|Ranker|pair_preference|PairPreference",
        "compares two responses and gives no response a reward of its own",
        "Use a reward model that scores one response, or a callable that plays a tournament.",
    ),
    (
        r"ForScore$|CostModel",
        "has a head of its own (`LlamaForScore` and its kin); where it is a cost model, higher is worse",
        "Wrap it in a callable f(prompts, completions, **kwargs), with the sign turned for costs.",
    ),
    (
        r"InternLM2ForRewardModel|ForRewardModel$",
        "scores with a method of its own (`get_score`)",
        "Load it with AutoModel and wrap that method in a callable f(prompts, completions, **kwargs).",
    ),
    (
        r"WithValueHead",
        "is a language model with TRL's old value head, which no auto class loads",
        "Convert it to a sequence classifier, or wrap it in a callable f(prompts, completions, **kwargs).",
    ),
)


def _explained(error: Exception, id_or_folder: str) -> LoadError | RewardModelError:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        return _brings_code(id_or_folder)
    folder = Path(id_or_folder).expanduser()
    if "no file named" in reason and not (folder.is_dir() and not list(folder.glob("*.bin"))):
        return RewardModelError(
            f"Reward model '{id_or_folder}' has to be stored as safetensors, but is a pickle, which runs whatever it "
            "holds. Convert it (load it where you trust it, then `save_pretrained`), or ask its authors to."
        )
    if isinstance(error, ValueError) and reason.startswith(("Unrecognized configuration", "The checkpoint you are")):
        return RewardModelError(
            f"Reward model '{id_or_folder}' has to be a sequence classifier transformers knows: {reason} Pass a "
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


def _brings_code(id_or_folder: str) -> RewardModelError:
    return RewardModelError(
        f"Reward model '{id_or_folder}' brings code of its own, which is not run unasked. Read that code, then pass "
        "`trust_remote_code=True`."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith((".", "!", "?")) else f"{lines[0]}."


def _head_outside_adapter(model: PreTrainedModel) -> list[str]:
    # For an adapter transformers reports what the adapter lacks, not what its base model lacked.
    if not getattr(model, "_hf_peft_config_loaded", False):
        return []
    heads = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    return [] if any(".modules_to_save." in name for name in heads) else heads
