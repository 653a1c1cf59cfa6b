"""
One training run from a configuration: parse and check it without a model, then load and train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.policies.chat_template import list_in_file, template_arguments
from hf_itp.policies.loading import load_policy_checkpoint
from hf_itp.policies.policy import as_conversations
from hf_itp.pools.file import fewest_rewards, read_pool
from hf_itp.rewards.from_code import with_code_loaded
from hf_itp.training.arguments import CTRLArguments, QuantileRegressionArguments
from hf_itp.training.artefacts import check_strategy
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.quantile_regression import QuantileRegressionTrainer, pool_file
from hf_itp.training.run_arguments import RunArguments
from hf_itp.training.run_checks import check_all_used
from hf_itp.training.run_parser import RunParser, read_config, take_option
from hf_itp.training.trainer import CTRLTrainer


@dataclass
class TrainingRun:
    """
    A checked configuration of one run.

    Args:
        run ([`RunArguments`]): Models, data, adapters.
        args ([`CTRLArguments`] or [`QuantileRegressionArguments`]): Arguments of the trainer.
        objective ([`CTRLObjective`]): The objective that follows from them.
        num_reference (`int`): References per prompt, those of the calibration if there is one.
    """

    run: RunArguments
    args: Any
    objective: CTRLObjective
    num_reference: int

    @classmethod
    def from_command_line(cls, arguments: Sequence[str], solver: str | None = None, dry: bool = False) -> TrainingRun:
        """
        Read `--config file.yaml` and `--name value` pairs, which override the file, as TRL does.

        Names must not be abbreviated, and the run must use every argument. A calibration is read for its references
        per prompt, on which the transform depends.

        Args:
            solver (`str`, *optional*): Solver whose arguments to expect. By default read from the configuration.
            dry (`bool`, *optional*, defaults to `False`): Only check, which needs no accelerator even if the
                configuration does.

        Raises:
            `ArgumentError`: If anything does not parse, contradicts itself or would not be used.
            `LoadError`: If the calibration cannot be read.
        """
        words, config, named = _take_configuration(arguments)
        parser = RunParser(solver or named)
        if dry and not torch.accelerator.is_available():
            words += ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]
        run, args, given = parser.read(words, config)
        has_prompts = isinstance(args, QuantileRegressionArguments) and run.calibration is not None
        sources = [source for source in (run.train_file, run.dataset_name) if source is not None]
        if len(sources) > 1 or (not sources and not has_prompts):
            raise ArgumentError(
                f"One of `train_file` and `dataset_name` must be given, got {run.train_file!r} and "
                f"{run.dataset_name!r}. Name one source of prompts."
            )
        check_strategy(args)
        check_all_used(run, args, given)
        with_code_loaded(run.reward_model)  # refuses what does not exist
        held = None if run.calibration is None else _references_held(run, args)
        count, fewest = held or (args.num_reference, args.num_reference)
        if given.get("num_reference", count) != count:
            raise ArgumentError(
                f"`num_reference` must have an effect, got {args.num_reference}, which has none: {run.calibration} "
                f"holds {count} references per prompt. Leave it out, or calibrate again."
            )
        args.chat_template_kwargs = template_arguments(
            args.chat_template_kwargs,
            list_in_file(run.tools, "tools"),
            list_in_file(run.documents, "documents"),
        )
        objective = CTRLObjective.from_arguments(args, fewest)
        _check_file(run.train_file)
        return cls(run, args, objective, count)

    def summary(self) -> dict[str, str]:
        """Return in words what the run trains for, and the KL and win rates of its optimum."""
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
            "prompts": self.run.train_file or self.run.dataset_name or f"those of {self.run.calibration}",
            "references": f"{self.num_reference} per prompt, "
            + ("drawn at the start" if self.run.calibration is None else f"of {self.run.calibration}"),
            "solver": "quantile regression" if isinstance(self.args, QuantileRegressionArguments) else "RLOO",
            "output": str(self.args.output_dir),
        }

    def train(self, resume: bool = False) -> Any:
        """Load, train, save and, if the arguments say so, push; return the trainer."""
        checkpoint = self.checkpoint(resume)
        trainer = self._trainer()
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if self.args.push_to_hub:
            trainer.push_to_hub()
        return trainer

    def checkpoint(self, resume: bool) -> str | None:
        """
        Return the checkpoint to continue from: `args.resume_from_checkpoint`, or with `resume` the last in
        `output_dir`.

        Raises:
            `ArgumentError`: If both are given, or the named one does not exist.
        """
        named = self.args.resume_from_checkpoint
        if named is None:
            there = resume and Path(self.args.output_dir).is_dir()
            return get_last_checkpoint(self.args.output_dir) if there else None
        if resume:
            raise ArgumentError(
                f"`--resume` must come without `resume_from_checkpoint`, got {named!r}. Leave one of them out."
            )
        if not Path(named).is_dir():
            raise ArgumentError(f"`resume_from_checkpoint` must be a folder, got none at {named!r}. Check the path.")
        return str(named)

    def _trainer(self) -> Any:
        model, tokenizer, _ = load_policy_checkpoint(
            self.run.model, dtype=self.run.dtype, auto_class=AutoModelForCausalLM
        )
        tokenizer.padding_side = "left"
        rewards = with_code_loaded(self.run.reward_model)
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
            return CTRLTrainer(**common, train_dataset=self._dataset(tokenizer), calibrator=calibrator)
        data = None if self.run.train_file is None and self.run.dataset_name is None else self._dataset(tokenizer)
        return QuantileRegressionTrainer(**common, train_dataset=data, pool=calibrated)

    def _dataset(self, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        if self.run.train_file is not None:
            dataset = load_dataset("json", data_files=self.run.train_file, split="train")
        else:
            dataset = load_dataset(self.run.dataset_name, self.run.dataset_config, split=self.run.dataset_train_split)
        column = self.run.prompt_column
        if column not in dataset.column_names:
            raise ArgumentError(
                f"`prompt_column` must be a column of the data, got {column!r}. Choose one of "
                f"{', '.join(dataset.column_names)}."
            )
        if column != "prompt":
            # All other columns stay, since a reward may take them.
            dataset = dataset.remove_columns([name for name in dataset.column_names if name == "prompt"])
            dataset = dataset.rename_column(column, "prompt")
        given = dataset["prompt"][:]
        prompts = as_conversations(given, tokenizer, plain=self.run.plain)
        if prompts == given:
            return dataset
        # Added before the texts go, since a data set without columns has no rows.
        return dataset.add_column("_prompt", prompts).remove_columns("prompt").rename_column("_prompt", "prompt")

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


def _take_configuration(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], str]:
    """Return the words without `--config`, the content of its file, and the solver that either names."""
    file, words = take_option(arguments, "--config")
    config = {} if file is None else read_config(file)
    solver, _ = take_option(words, "--solver")
    return words, config, str(solver or config.get("solver") or "rl")


def _references_held(run: RunArguments, args: Any) -> tuple[int, int]:
    """Return how many references per prompt the calibration holds, and how many of these have a reward at least."""
    assert run.calibration is not None
    if isinstance(args, QuantileRegressionArguments):
        rows = read_pool(pool_file(run.calibration))
        return len(rows[0]["rewards"]), fewest_rewards(rows)
    calibrator = RewardCalibrator.from_pretrained(run.calibration)
    return calibrator.num_reference, calibrator.fewest_references


def _check_file(file: str | None) -> None:
    # `datasets` resolves patterns and URLs.
    if file is not None and not any(sign in file for sign in "*?[") and "://" not in file and not Path(file).is_file():
        raise ArgumentError(f"`train_file` must be a file, got none at {file!r}. Check the path.")


def print_all_options(arguments: Sequence[str] = ()) -> None:
    """Print every option of a run with the solver that the arguments name."""
    RunParser(_take_configuration(arguments)[2]).print_help(sys.stdout)
