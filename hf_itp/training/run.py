"""
One training run from a configuration: parse and check it without a model, then load and train.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.generation.recommendation import is_hub_id
from hf_itp.policies.chat_template import list_in_file, template_arguments
from hf_itp.policies.loading import load_policy_checkpoint
from hf_itp.policies.policy import as_conversations
from hf_itp.pools.datasets import check_column, load_rows
from hf_itp.pools.file import read_pool
from hf_itp.pools.schema import fewest_rewards
from hf_itp.rewards.from_code import with_code_loaded
from hf_itp.training.arguments import CTRLArguments, QuantileRegressionArguments
from hf_itp.training.artefacts import check_strategy
from hf_itp.training.described import described_objective, described_training
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.quantile_regression import QuantileRegressionTrainer, pool_file
from hf_itp.training.run_arguments import RunArguments
from hf_itp.training.run_checks import check_all_used, evaluates
from hf_itp.training.run_parser import RunParser, read_config, take_option
from hf_itp.training.trainer import CTRLTrainer

# The trainer's last state, in the `output_dir` of a run that came to its end.
_FINISHED = "_finished.json"


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
        _check_file("train_file", run.train_file)
        _check_file("eval_file", run.eval_file)
        return cls(run, args, objective, count)

    def summary(self) -> dict[str, str]:
        """Return in words what the run trains, on what and how, and the KL and win rates of its optimum."""
        expected, n = self.objective.expected(), self.args.num_candidates
        worst = self.args.strategy == "worst_of_n"
        rate = expected.worst_of_n_win_rate(n) if worst else expected.best_of_n_win_rate(n)
        return {
            "policy": f"{self.run.model} ({self.run.dtype})",
            "reward model": ", ".join(self.run.reward_model),
            **described_objective(self.args, self.objective),
            "optimum's KL": f"{expected.kl:.3f} nats",
            "its win rate": f"{expected.win_rate:.3f} against the reference policy",
            f"with {'worst' if worst else 'best'}-of-{n}": f"{rate:.3f} against the same of it",
            "prompts": self._prompts_in_words(),
            "references": f"{self.num_reference} per prompt, "
            + ("drawn at the start" if self.run.calibration is None else f"of {self.run.calibration}"),
            "solver": "quantile regression" if isinstance(self.args, QuantileRegressionArguments) else "RLOO",
            "trained": self._adapters_in_words(),
            **described_training(self.args, responses_given=self.run.calibration is not None),
            "evaluation": self._evaluation_in_words(),
            "output": str(self.args.output_dir),
        }

    def _prompts_in_words(self) -> str:
        if self.run.train_file is None and self.run.dataset_name is None:
            return f"those of {self.run.calibration}"
        column = f", column {self.run.prompt_column!r}"
        form = ", as plain text" if self.run.plain else ", texts as messages if the policy has a chat template"
        return f"{_source(self.run.train_file, self.run, self.run.dataset_train_split)}{column}{form}"

    def _adapters_in_words(self) -> str:
        if self.run.lora_r == 0:
            return "the whole model"
        modules = ", ".join(self.run.lora_target_modules or ()) or "the modules that peft chooses"
        return f"LoRA of rank {self.run.lora_r}, alpha {self.run.lora_alpha}, on {modules}"

    def _evaluation_in_words(self) -> str:
        if not self._evaluates():
            return "none during training"
        args, count = self.args, self.args.num_generations_eval or self.args.num_generations
        when = f"every {args.eval_steps:g} steps" if args.eval_strategy == "steps" else "every epoch"
        when = "at the start only" if args.eval_strategy == "no" else when
        n = args.num_candidates
        missing = f", too few for the win rate with N = {n}" if args.strategy != "none" and count < n else ""
        where = _source(self.run.eval_file, self.run, self.run.dataset_test_split)
        return f"{where}, {when}, {count} responses per prompt{missing}"

    def _evaluates(self) -> bool:
        return not isinstance(self.args, QuantileRegressionArguments) and evaluates(self.args)

    def train(self, resume: bool = False) -> Any:
        """
        Load, train, save and, if the arguments say so, push; return the trainer. Does nothing and returns `None` if
        the run to continue is [`finished`].
        """
        checkpoint = self.checkpoint(resume)
        if self.finished(resume):
            return None
        trainer = self._trainer()
        if self.run.dataset_name is not None and is_hub_id(self.run.dataset_name):
            trainer.datasets.append(self.run.dataset_name)
        if self.run.license is not None:
            trainer.stated["license"] = self.run.license
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.is_world_process_zero():
            # Not pushed, since its name starts with an underscore.
            trainer.state.save_to_json(str(Path(self.args.output_dir) / _FINISHED))
        if self.args.push_to_hub:
            trainer.push_to_hub()
        return trainer

    def checkpoint(self, resume: bool) -> str | None:
        """
        Return the checkpoint to continue from: `args.resume_from_checkpoint`, or with `resume` the last in
        `output_dir`. The former may also be the `output_dir` of a run, whose last checkpoint counts.

        Raises:
            `ArgumentError`: If both are given, or the named one does not exist or holds no checkpoint.
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
        if (Path(named) / TRAINER_STATE_NAME).is_file():
            return str(named)
        found = get_last_checkpoint(named)
        if found is None and not (Path(named) / _FINISHED).is_file():
            raise ArgumentError(
                f"`resume_from_checkpoint` must hold a checkpoint, got none in {named!r}. Name a checkpoint-N folder, "
                "or the output_dir of a run that wrote one."
            )
        return found

    def finished(self, resume: bool) -> str | None:
        """Return the file that says that the run to continue has made all its steps; `None` if it has not."""
        checkpoint, named = self.checkpoint(resume), self.args.resume_from_checkpoint
        if not resume and named is None:
            return None
        places = [Path(named or self.args.output_dir) / _FINISHED]
        if checkpoint is not None:
            places.append(Path(checkpoint) / TRAINER_STATE_NAME)
        return next((str(place) for place in places if place.is_file() and self._is_complete(place)), None)

    def _is_complete(self, state: Path) -> bool:
        reached = json.loads(state.read_text(encoding="utf-8"))
        if self.args.max_steps > 0:
            return int(reached["global_step"]) >= self.args.max_steps
        # The steps of an epoch depend on the data; a whole number of epochs does not.
        return float(reached["epoch"] or 0) >= self.args.num_train_epochs - 1e-6

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
            train = self._dataset(tokenizer, self.run.train_file, self.run.dataset_train_split)
            held_out = None
            if self._evaluates():
                held_out = self._dataset(tokenizer, self.run.eval_file, self.run.dataset_test_split)
            return CTRLTrainer(**common, train_dataset=train, eval_dataset=held_out, calibrator=calibrator)
        data = None
        if self.run.train_file is not None or self.run.dataset_name is not None:
            data = self._dataset(tokenizer, self.run.train_file, self.run.dataset_train_split)
        return QuantileRegressionTrainer(**common, train_dataset=data, pool=calibrated)

    def _dataset(self, tokenizer: PreTrainedTokenizerBase, file: str | None, split: str) -> Dataset:
        if file is None:
            dataset = load_rows(str(self.run.dataset_name), self.run.dataset_config, split)
        else:
            dataset = load_dataset("json", data_files=file, split="train")
        column = self.run.prompt_column
        check_column(column, dataset)
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


def _source(file: str | None, run: RunArguments, split: str) -> str:
    """Return where prompts come from, in words."""
    if file is not None:
        return file
    return f"{run.dataset_name}{'' if run.dataset_config is None else f', {run.dataset_config}'}, split {split!r}"


def _check_file(name: str, file: str | None) -> None:
    # `datasets` resolves patterns and URLs.
    if file is not None and not any(sign in file for sign in "*?[") and "://" not in file and not Path(file).is_file():
        raise ArgumentError(f"`{name}` must be a file, got none at {file!r}. Check the path.")


def print_all_options(arguments: Sequence[str] = ()) -> None:
    """Print every option of a run with the solver that the arguments name."""
    RunParser(_take_configuration(arguments)[2]).print_help(sys.stdout)
