"""`hf-itp calibrate`: reference rewards per prompt, into a folder that training and decoding read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_itp.cli import options
from hf_itp.cli.models import EMBEDDED, load_reward_models, loading_bars
from hf_itp.cli.prompts import read_columns, read_prompts
from hf_itp.errors import ArgumentError


def calibrate(
    output_dir: Annotated[
        Path, typer.Argument(help="Folder for the calibration and the reference responses; taken up if it is there.")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--file",
            "-f",
            help="Prompts: .jsonl (or .jsonl.gz) with `prompt` or `messages` a line, whose other columns the reward "
            "gets, any other file one prompt a line; - is stdin.",
        ),
    ],
    model: options.Model = EMBEDDED,
    reward_model: options.RewardModels = [EMBEDDED],  # noqa: B006  typer copies defaults
    device: options.Device = None,
    num_reference: Annotated[
        int,
        typer.Option(
            "--num-reference",
            "-k",
            min=2,
            help="Reference responses per prompt (K). A quantile's error is at most 0.5 / sqrt(K); exponential(t) "
            "needs 3 |t| + 2 at least.",
            rich_help_panel=options.DRAWING,
        ),
    ] = 100,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: Annotated[
        float | None, typer.Option(help=options.TEMPERATURE_HELP, rich_help_panel=options.DRAWING)
    ] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most responses decoded at once.", rich_help_panel=options.DRAWING),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict", help="Also learn to predict the rewards' quantiles for prompts that have no references."
        ),
    ] = False,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help="Arguments of the policy's chat template, as JSON: '{\"enable_thinking\": false}'.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the prompts as plain text, without the policy's chat template.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=options.OUTPUT)
    ] = False,
    debug: options.Debug = False,
) -> None:
    """
    Draw reference responses for each prompt, score them, and keep their sorted rewards.

    A run that was killed goes on where it stopped, with the same command, and
    ends in the same bytes. Under [bold]accelerate launch[/bold] the processes share the prompts.

    [bold]Examples[/bold]

      hf-itp calibrate outputs/calibration -f prompts.txt
      hf-itp calibrate outputs/calibration -f chats.jsonl -m org/policy -r org/reward-model -k 100
      accelerate launch -m hf_itp.cli calibrate /shared/calibration -f prompts.jsonl -m org/policy
    """
    given = read_prompts([], file)
    from hf_itp import Policy, RewardCalibrator
    from hf_itp.policies.policy import as_conversations

    with loading_bars(shown=not quiet):
        policy = Policy.from_pretrained(model, device)
        prompts = as_conversations(given, policy.tokenizer, plain=plain)
        reward = load_reward_models(reward_model, device=policy.model.device)
    sampling: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    calibrator = RewardCalibrator.fit(
        policy.model,
        reward,
        prompts,
        num_reference=num_reference,
        seed=seed,
        tokenizer=policy.tokenizer,
        output_dir=output_dir,
        chat_template_kwargs=_template_arguments(chat_template_kwargs),
        reward_kwargs=read_columns(file, len(given)),
        predict=predict,
        batch_size=batch_size,
        progress=False if quiet else None,
        max_new_tokens=max_new_tokens,
        **sampling,
    )
    print(f"{len(calibrator.fingerprints)} prompts with {calibrator.num_reference} references each: {output_dir}")
    if calibrator.predictor is not None:
        error, baseline = calibrator.predictor.calibration_error, calibrator.predictor.baseline_error
        print(
            f"Prompts without references: predicted quantiles are off by {error:.3f} (one set for all: {baseline:.3f})"
        )


def _template_arguments(given: str | None) -> dict[str, Any]:
    try:
        arguments = {} if given is None else json.loads(given)
    except ValueError as error:
        raise ArgumentError(f"`--chat-template-kwargs` must be JSON, got {given!r} ({error}). Quote names.") from error
    if not isinstance(arguments, dict):
        raise ArgumentError(f"`--chat-template-kwargs` must be a JSON object, got {given!r}. Write {{...}}.")
    return arguments
