"""
Write the files beside a policy's weights: its recommended decoding, its calibration, its card.

Every push writes them here: a trainer's final push, its pushes during training, the function and the command.
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
from hf_itp.generation.recommendation import with_entry
from hf_itp.hub.cards import CardFacts, policy_card
from hf_itp.hub.custom_generate import write_custom_generate


def write_artefacts(
    folder: str | Path,
    *,
    generation_config: GenerationConfig,
    entry: dict[str, Any],
    calibrator: RewardCalibrator | None = None,
    facts: CardFacts | None = None,
) -> None:
    """
    Write everything a pushed policy carries beside its weights and tokenizer.

    Args:
        folder (`str` or `Path`): The checkpoint's folder.
        generation_config (`GenerationConfig`): The policy's. Not changed: a copy is written.
        entry (`dict`): From [`~generation.recommendation.decoding_entry`]. If empty, no `custom_generate/` is written.
        calibrator ([`RewardCalibrator`], *optional*): Its calibration.
        facts ([`CardFacts`], *optional*): For the card, `README.md`. By default no card is written.
    """
    with files_put_at_once(Path(folder)) as made:
        _write(made, generation_config, entry, calibrator, facts)


@contextmanager
def files_put_at_once(folder: Path) -> Iterator[Path]:
    """
    Yield a folder to write into, whose files are moved to `folder` afterwards, so that none is seen half written.

    A trainer's push during training lists and reads its folder in the background, while training continues to the next
    save. It leaves out names that begin with an underscore.
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
    with_entry(generation_config, entry).save_pretrained(folder)
    if entry:
        write_custom_generate(folder)
    if calibrator is not None:
        calibrator.save_pretrained(folder)
    if facts is not None:
        if facts.picture is not None and Path(facts.picture).is_file():
            shutil.copyfile(facts.picture, folder / Path(facts.picture).name)
        (folder / "README.md").write_text(str(policy_card(facts, entry, calibrator)), encoding="utf-8")
