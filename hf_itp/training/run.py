"""
One training run from a configuration: parsed and checked without a model, then loaded and trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.training.arguments import CTRLArguments, QuantileRegressionArguments
from hf_itp.training.artefacts import check_strategy
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.quantile_regression import QuantileRegressionTrainer
from hf_itp.training.run_arguments import RunArguments
from hf_itp.training.trainer import CTRLTrainer

SOLVERS: dict[str, Any] = {"rl": CTRLArguments, "quantile_regression": QuantileRegressionArguments}


@dataclass
class TrainingRun:
    """
    Args:
        run ([`RunArguments`]): Models, data, adapters.
        args ([`CTRLArguments`] or [`QuantileRegressionArguments`]): The trainer's.
        objective ([`CTRLObjective`]): What follows from them.
    """

    run: RunArguments
    args: Any
    objective: CTRLObjective

    @classmethod
    def from_command_line(cls, arguments: Sequence[str], solver: str | None = None, dry: bool = False) -> TrainingRun:
        """
        Reads `--config file.yaml` and `--name value` pairs, the latter before the former, in TRL's manner.

        Args:
            solver (`str`, *optional*): Which arguments to expect; read from the configuration if absent.
            dry (`bool`, *optional*, defaults to `False`): Only to be checked, which a machine without the accelerator
                that the configuration is for can do.

        Raises:
            `ArgumentError`: If anything does not parse or contradicts itself.
        """
        solver = solver or _solver_of(arguments)
        if solver not in SOLVERS:
            raise ArgumentError(f"`solver` has to be one of {', '.join(SOLVERS)}, but is {solver!r}. Choose one.")
        arguments = list(arguments)
        if dry and not torch.accelerator.is_available():
            arguments += ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]
        kinds: Any = (RunArguments, SOLVERS[solver])
        parser = TrlParser(kinds)
        try:
            run, args = parser.parse_args_and_config(arguments)
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"The configuration does not hold: {error}") from error
        if (run.train_file is None) == (run.dataset_name is None):
            raise ArgumentError(
                f"One of `train_file` and `dataset_name` has to be given, but they are {run.train_file!r} and "
                f"{run.dataset_name!r}. Name one source of prompts."
            )
        check_strategy(args)
        return cls(run, args, CTRLObjective.from_arguments(args))

    def summary(self) -> dict[str, str]:
        """What the run is for and where its optimum lies, in words."""
        expected, n = self.objective.expected(), self.args.num_candidates
        worst = self.args.strategy == "worst_of_n"
        rate = expected.worst_of_n_win_rate(n) if worst else expected.best_of_n_win_rate(n)
        return {
            "policy": self.run.model,
            "reward model": ", ".join(self.run.reward_model),
            "decoded with": f"{self.args.strategy}, N = {n}",
            "transform": str(self.objective.transform),
            "beta": f"{self.objective.beta:.6g}",
            "optimum's KL": f"{expected.kl:.3f} nats",
            "its win rate": f"{expected.win_rate:.3f} against the reference policy",
            f"with {'worst' if worst else 'best'}-of-{n}": f"{rate:.3f} against the same of it",
            "prompts": self.run.train_file or str(self.run.dataset_name),
            "solver": "quantile regression" if isinstance(self.args, QuantileRegressionArguments) else "RLOO",
            "output": str(self.args.output_dir),
        }

    def train(self, resume: bool = False) -> Any:
        """Loads everything, trains, saves and, where the arguments say so, pushes; returns the trainer."""
        trainer = self._trainer()
        checkpoint = None
        if resume and Path(self.args.output_dir).is_dir():
            checkpoint = get_last_checkpoint(self.args.output_dir)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if self.args.push_to_hub:
            trainer.push_to_hub()
        return trainer

    def _trainer(self) -> Any:
        from hf_itp.embedded import policy_path

        source = str(policy_path()) if self.run.model == "embedded" else self.run.model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(source, dtype=self.run.dtype)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        rewards = self.run.reward_model
        calibrated = self.run.calibration
        common: dict[str, Any] = {
            "model": model,
            "reward_model": rewards[0] if len(rewards) == 1 else rewards,
            "args": self.args,
            "processing_class": tokenizer,
            "peft_config": self._adapters(),
        }
        if isinstance(self.args, CTRLArguments):
            calibrator = None if calibrated is None else RewardCalibrator.from_pretrained(calibrated)
            return CTRLTrainer(**common, train_dataset=self._dataset(), calibrator=calibrator)
        data = {"train_dataset": self._dataset()} if calibrated is None else {"pool": calibrated}
        return QuantileRegressionTrainer(**common, **data)

    def _dataset(self) -> Dataset:
        if self.run.train_file is not None:
            dataset = load_dataset("json", data_files=self.run.train_file, split="train")
        else:
            dataset = load_dataset(self.run.dataset_name, self.run.dataset_config, split=self.run.dataset_train_split)
        column = self.run.prompt_column
        if column not in dataset.column_names:
            raise ArgumentError(
                f"`prompt_column` has to be a column of the data, but is {column!r}. Choose one of "
                f"{', '.join(dataset.column_names)}."
            )
        return dataset.select_columns([column]).rename_column(column, "prompt") if column != "prompt" else dataset

    def _adapters(self) -> Any:
        if self.run.lora_r == 0:
            return None
        from peft import LoraConfig

        return LoraConfig(
            r=self.run.lora_r,
            lora_alpha=self.run.lora_alpha,
            target_modules=self.run.lora_target_modules,
            task_type="CAUSAL_LM",
        )


def _solver_of(arguments: Sequence[str]) -> str:
    for position, argument in enumerate(arguments):
        if argument == "--solver" and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith("--solver="):
            return argument.split("=", 1)[1]
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            import yaml

            path = Path(arguments[position + 1])
            if not path.is_file():
                raise ArgumentError(f"`--config` has to be a YAML file, but there is none at {path}. Check the path.")
            return str((yaml.safe_load(path.read_text()) or {}).get("solver", "rl"))
    return "rl"


def print_all_options(solver: str = "rl") -> None:
    """Every option of a run, as the parser lists them."""
    kinds: Any = (RunArguments, SOLVERS[solver])
    TrlParser(kinds).print_help(sys.stdout)
