"""
What a trained policy carries beside its weights: its calibration, and how it wants to be decoded.

A mixin over `transformers.Trainer`. Artefacts go into every saved folder, and into `output_dir` before each push:
a push in mid-training uploads that folder and takes from the checkpoint only weights and configurations.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, TrainerCallback

from hf_itp.calibration import RewardCalibrator
from hf_itp.recommendation import ENTRY
from hf_itp.training.objective import CTRLObjective, ObjectiveArguments

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class CarriesCalibration(_Base):
    """Saves and pushes `calibrator` and the decoding entry with the model."""

    args: Any
    model: Any
    objective: CTRLObjective
    calibrator: RewardCalibrator | None
    reward_name: str

    def decoding_entry(self) -> dict[str, Any]:
        """The entry of `generation_config.json` that `generate(strategy="auto")` follows."""
        args: Any = self.args
        if args.strategy == "none":
            return {}
        fields = args.strategy_fields if isinstance(args.strategy_fields, dict) else {}
        return {
            "strategy": args.strategy,
            "num_candidates": args.num_candidates,
            "reward_model": self.reward_name,
            **fields,
        }

    def save_artefacts(self, folder: str | Path) -> None:
        """Writes the calibration and a generation config with the entry into `folder`."""
        if self.calibrator is not None:
            self.calibrator.save_pretrained(folder)
        model: Any = self.accelerator.unwrap_model(self.model)
        config = GenerationConfig.from_dict(model.generation_config.to_dict())
        if entry := self.decoding_entry():
            setattr(config, ENTRY, entry)
        # Written as derived from the model's config, the file would lose every key of ours when it is read.
        config._from_model_config = False
        config.save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.save_artefacts(output_dir or self.args.output_dir)


class ArtefactsBeforePush(TrainerCallback):
    """Puts the artefacts where a push in mid-training looks for them."""

    def __init__(self, trainer: CarriesCalibration):
        self._trainer = trainer

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.is_world_process_zero():
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            self._trainer.save_artefacts(args.output_dir)


def check_strategy(args: ObjectiveArguments) -> None:
    """
    Raises:
        `ArgumentError`: If `args.strategy` is none, or its fields are not its own.
    """
    from hf_itp.strategies import get_strategy

    if args.strategy != "none":
        get_strategy(args.strategy, **(args.strategy_fields if isinstance(args.strategy_fields, dict) else {}))
