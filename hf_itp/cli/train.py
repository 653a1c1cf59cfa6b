"""`hf-itp train`: train a policy for the strategy it will be decoded with, from a YAML file or options."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_itp.cli import options
from hf_itp.errors import MissingDependencyError

CONTEXT = {**options.CONTEXT, "allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(help="YAML file of options by name.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the configuration and show its objective; load no model.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in output_dir, if there is one.")
    ] = False,
    all_options: Annotated[
        bool, typer.Option("--all-options", help="List every option, including those of the trainer.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """
    Train a policy for the strategy it will be decoded with.

    CTRL: rewards are calibrated to quantiles under the reference policy,
    transformed for the strategy, and maximized at a KL divergence you choose.

    The file and the command take any option of the run and of the trainer; the command wins.
    TRL's names work too: --model_name_or_path, --reward_funcs, --dataset_train_split.
    A run that is finished is not continued by --resume.

    [bold]The options that matter[/bold]

      --model          policy: Hub id, folder or 'embedded'
      --reward_model   likewise, or a function of yours, FILE.py:NAME or
                       MODULE:NAME, whose code is run; several are averaged
      --train_file     JSON lines with a `prompt`, whose other columns go to
                       the reward; or --dataset_name
      --eval_file      prompts to evaluate on, with --eval_strategy
      --plain          text prompts as plain text, not as a user's message
      --strategy       what the policy will be decoded with (best_of_n)
      --num_candidates its N (4)
      --transform      of the calibrated reward (auto: by strategy)
      --t              of transform exponential
      --target_kl      KL divergence from the reference policy, in nats (0.5)
      --num_reference  reference responses per prompt (100)
      --calibration    folder that hf-itp calibrate wrote, instead
      --solver         rl (TRL's RLOO), or quantile_regression: no rollouts
      --lora_r         rank of adapters; 0 trains the whole model

    [bold]Examples[/bold]

      hf-itp train --config recipe.yaml --dry-run
      hf-itp train --train_file prompts.jsonl --output_dir outputs/ctrl
      accelerate launch -m hf_itp.cli train --config recipe.yaml
    """
    try:
        from hf_itp.training.run import TrainingRun, print_all_options
    except ImportError as error:
        raise MissingDependencyError(
            f"`hf-itp train` needs TRL, peft and datasets, which are not installed ({error}). Install them with "
            "`pip install hf-itp[train]`."
        ) from error
    arguments = [*(["--config", config] if config else []), *context.args]
    if all_options:
        print_all_options(arguments)
        return
    run = TrainingRun.from_command_line(arguments, dry=dry_run)
    summary = run.summary()
    finished = run.finished(resume)
    if (checkpoint := run.checkpoint(resume)) is not None and not finished:
        summary["continues from"] = checkpoint
    if finished is not None:
        summary["finished"] = f"nothing to do: all steps are made already, says {finished}"
    if run.args.process_index == 0:
        for name, value in summary.items():
            # Not click's echo, which writes UTF-8 to an ASCII console.
            print(f"{name:>16}  {value}", file=sys.stdout if dry_run else sys.stderr)
    if not dry_run:
        run.train(resume=resume)
