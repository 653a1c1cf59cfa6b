"""
What stands beside a policy's weights: how it wants to be decoded, its calibration, its card.

Every way to push writes the same files through here: a trainer's final push, its pushes in mid-training, the function
and the command.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import GenerationConfig

from hf_itp.calibration import RewardCalibrator
from hf_itp.checks import check_count
from hf_itp.generation.recommendation import ENTRY
from hf_itp.hub.cards import CardFacts, policy_card
from hf_itp.hub.custom_generate import write_custom_generate


def decoding_entry(
    strategy: str | None,
    num_candidates: int,
    reward_model: str | None,
    reward_model_revision: str | None = None,
    fields: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    The entry of `generation_config.json` that `generate(strategy="auto")` follows; empty without a strategy.

    Raises:
        `ArgumentError`: If there is no such strategy, or it does not take these fields.
    """
    if strategy in (None, "none"):
        return {}
    from hf_itp.strategies import get_strategy

    settings = get_strategy(str(strategy), **(fields or {})).settings()
    count = check_count("num_candidates", num_candidates, 1, "Recommend e.g. 16.")
    entry: dict[str, Any] = {"strategy": strategy, "num_candidates": count}
    if reward_model is not None:
        entry["reward_model"] = reward_model
    if reward_model_revision is not None:
        entry["reward_model_revision"] = reward_model_revision
    # As the strategy holds them: plain numbers, which JSON takes.
    return {**entry, **{name: settings[name] for name in fields or {}}}


def write_artefacts(
    folder: str | Path,
    *,
    generation_config: GenerationConfig,
    entry: dict[str, Any],
    calibrator: RewardCalibrator | None = None,
    facts: CardFacts | None = None,
) -> None:
    """
    Writes all that a pushed policy carries beside weights and tokenizer.

    Args:
        folder (`str` or `Path`): The checkpoint's.
        generation_config (`GenerationConfig`): The policy's; left as it is, a copy is written.
        entry (`dict`): What [`decoding_entry`] gave. Without one there is no `custom_generate/` either.
        calibrator ([`RewardCalibrator`], *optional*): Its calibration.
        facts ([`CardFacts`], *optional*): For the card, `README.md`; without them none is written.
    """
    with files_put_at_once(Path(folder)) as made:
        _write(made, generation_config, entry, calibrator, facts)


@contextmanager
def files_put_at_once(folder: Path) -> Iterator[Path]:
    """
    A folder to write into, whose files are in `folder` afterwards, each of them never half written.

    A trainer's push in mid-training lists and reads its folder in the background, while training goes on to the next
    save. What begins with an underscore it leaves out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="_") as made:
        yield Path(made)
        for file in sorted(path for path in Path(made).rglob("*") if path.is_file()):
            target = folder / file.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


def _write(
    folder: Path,
    generation_config: GenerationConfig,
    entry: dict[str, Any],
    calibrator: RewardCalibrator | None,
    facts: CardFacts | None,
) -> None:
    config = GenerationConfig.from_dict(generation_config.to_dict())
    if entry:
        setattr(config, ENTRY, entry)
        write_custom_generate(folder)
    # Written as derived from the model's config, the file would lose every key of ours when it is read.
    config._from_model_config = False
    config.save_pretrained(folder)
    if calibrator is not None:
        calibrator.save_pretrained(folder)
    if facts is not None:
        if facts.picture is not None and Path(facts.picture).is_file():
            shutil.copyfile(facts.picture, folder / Path(facts.picture).name)
        (folder / "README.md").write_text(str(policy_card(facts, entry, calibrator)), encoding="utf-8")
