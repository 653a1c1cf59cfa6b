"""
Build model cards from the templates in `model_cards/`: what a reader must know before trusting a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_itp._version import __version__
from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import LoadError

_UNKNOWN = "not recorded"


@dataclass
class CardFacts:
    """
    Hold what only the person who pushes can know.

    Args:
        repo_id (`str`): The repository it is pushed to.
        base_model, license, language (`str`, *optional*): For the Hub's metadata. A local folder is left out of it.
        datasets (`list[str]`): Ids of the data it was trained on.
        training (`dict[str, str]`): Rows of the table on training: transform, KL, steps, compute, ...
        results (`list[dict]`): Rows `name`, `value`, `low`, `high`: win rates and the ends of their intervals.
        results_on (`str`, *optional*): The prompts they were measured on.
        picture (`str`, *optional*): File of a picture, such as a scaling curve, to copy beside the card.
        auto_class (`str`): The transformers class that loads it.
        adapter (`bool`): Whether the repository holds a PEFT adapter, which takes one extra line to load.
        limits (`list[str]`): Sentences on what it is not for.
        extra_tags (`list[str]`): Tags beside those of every card.
    """

    repo_id: str
    base_model: str | None = None
    license: str | None = None
    language: str | None = None
    datasets: list[str] = field(default_factory=list)
    training: dict[str, str] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    results_on: str | None = None
    picture: str | None = None
    auto_class: str = "AutoModelForCausalLM"
    adapter: bool = False
    limits: list[str] = field(default_factory=list)
    extra_tags: list[str] = field(default_factory=list)


def policy_card(facts: CardFacts, entry: dict[str, Any], calibrator: RewardCalibrator | None = None) -> ModelCard:
    """
    Build the card of a policy.

    Args:
        facts ([`CardFacts`]): What is known of it.
        entry (`dict`): Its recommended decoding; empty for plain decoding.
        calibrator ([`RewardCalibrator`], *optional*): The calibration it carries.
    """
    tags = ["hf-itp", *(["custom_generate"] if entry else []), *facts.extra_tags]
    return _card(
        "policy.md",
        _metadata(facts, tags, "text-generation"),
        name=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        entry=entry,
        entry_json=json.dumps(entry, indent=2),
        training=facts.training,
        results=facts.results,
        results_on=facts.results_on or _UNKNOWN,
        picture=None if facts.picture is None else Path(facts.picture).name,
        auto_class=facts.auto_class,
        adapter=facts.adapter,
        limits=facts.limits,
        calibration=None if calibrator is None else _described(calibrator),
        base_model=facts.base_model or _UNKNOWN,
        datasets=facts.datasets,
        license=facts.license or _UNKNOWN,
        version=__version__,
    )


def calibrator_card(facts: CardFacts, calibrator: RewardCalibrator) -> ModelCard:
    """Build the card of a calibration pushed by itself."""
    return _card(
        "calibrator.md",
        _metadata(facts, ["hf-itp", "reward-calibration", *facts.extra_tags], None),
        name=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        calibration=_described(calibrator),
        limits=facts.limits,
        license=facts.license or _UNKNOWN,
        version=__version__,
    )


def reward_model_card(facts: CardFacts, *, accuracy: dict[str, Any] | None = None) -> ModelCard:
    """
    Build the card of a reward model.

    Args:
        facts ([`CardFacts`]): What is known of it.
        accuracy (`dict`, *optional*): `value`, `low`, `high` and `on`: how often it prefers the better response.
    """
    return _card(
        "reward_model.md",
        _metadata(facts, ["hf-itp", "reward-model", *facts.extra_tags], "text-classification"),
        name=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        accuracy=accuracy,
        training=facts.training,
        limits=facts.limits,
        base_model=facts.base_model or _UNKNOWN,
        datasets=facts.datasets,
        license=facts.license or _UNKNOWN,
        version=__version__,
    )


def templates_folder() -> Path:
    """Return the folder of the templates: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "model_cards", package.parent / "model_cards"):
        if (folder / "policy.md").is_file():
            return folder
    raise LoadError("The card templates of hf_itp are missing from this installation. Install it again.")


def _card(template: str, data: ModelCardData, **content: Any) -> ModelCard:
    return ModelCard.from_template(data, template_path=str(templates_folder() / template), **content)


def _metadata(facts: CardFacts, tags: Sequence[str], pipeline_tag: str | None) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="prompts",
            dataset_name=facts.results_on or _UNKNOWN,
            metric_type="win_rate",
            metric_name=row["name"],
            metric_value=round(float(row["value"]), 4),
        )
        for row in facts.results
    ]
    base = None if facts.base_model is None or Path(facts.base_model).is_dir() else facts.base_model
    return ModelCardData(
        base_model=base,
        license=facts.license,
        language=facts.language,
        datasets=facts.datasets or None,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=list(dict.fromkeys(tags)),
        model_name=facts.repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _described(calibrator: RewardCalibrator) -> dict[str, Any]:
    reward, policy = calibrator.reward_model, calibrator.policy
    return {
        "prompts": len(calibrator.fingerprints),
        "num_reference": calibrator.num_reference,
        "reward_model": reward["name"] or _UNKNOWN,
        "reward_revision": reward["revision"] or _UNKNOWN,
        "reward_dtype": reward["dtype"] or _UNKNOWN,
        "policy": policy["name"] or _UNKNOWN,
        "policy_revision": policy["revision"] or _UNKNOWN,
        "sampling": ", ".join(f"{name}={value}" for name, value in calibrator.sampling.items()) or _UNKNOWN,
        "seed": _UNKNOWN if calibrator.seed is None else calibrator.seed,
    }
