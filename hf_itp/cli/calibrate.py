"""`hf-itp calibrate`: write reference rewards per prompt to a folder for training and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_itp.cli import options, sources, template
from hf_itp.cli.models import EMBEDDED, load_reward_models, loading_bars
from hf_itp.cli.prompts import reward_columns
from hf_itp.generation.keywords import KEYWORDS

_NUM_REFERENCE_HELP = (
    "Reference responses per prompt (K). A quantile's error is at most 0.5 / sqrt(K); exponential(t) needs at least "
    "3 |t| + 2."
)


def calibrate(
    context: typer.Context,
    output_dir: Annotated[
        Path, typer.Argument(help="Folder for the calibration and its reference responses; a run left there resumes.")
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Prompts: .jsonl (or .jsonl.gz) with a `prompt` or `messages` per line, whose other columns go to "
            "the reward; any other file one prompt per line; - is stdin.",
        ),
    ] = None,
    dataset_name: sources.DatasetName = None,
    dataset_config: sources.DatasetConfig = None,
    dataset_train_split: Annotated[str, typer.Option(help="Its split.")] = "train",
    prompt_column: sources.PromptColumn = "prompt",
    plain: options.Plain = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Also fit a predictor of quantiles for prompts without references.")
    ] = False,
    model: options.Model = EMBEDDED,
    model_name_or_path: sources.TrlModel = None,
    reward_model: options.RewardModels = [EMBEDDED],  # noqa: B006  typer copies it
    reward_funcs: sources.TrlRewards = None,
    reward_model_name_or_path: sources.TrlReward = None,
    device: options.Device = None,
    num_reference: Annotated[int, options.drawing("--num-reference", "-k", min=2, help=_NUM_REFERENCE_HELP)] = 100,
    max_new_tokens: options.MaxNewTokens = 256,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    temperature: options.Temperature = None,
    tools: template.Tools = None,
    documents: template.Documents = None,
    chat_template_kwargs: template.ChatTemplateKwargs = None,
    reward_view: Annotated[str, options.drawing(help=KEYWORDS["reward_view"].help)] = "full",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """
    Draw reference responses for each prompt, score them, and keep their sorted rewards.

    An interrupted run resumes with the same command and ends in the same bytes.
    Under [bold]accelerate launch[/bold] the processes share the prompts. A text is a user's
    message if the policy has a chat template, here as in hf-itp train.

    [bold]Examples[/bold]

      hf-itp calibrate outputs/calibration -f prompts.txt
      hf-itp calibrate outputs/calibration -f chats.jsonl -m org/policy -r org/reward-model -k 100
      hf-itp calibrate outputs/calibration -f sums.jsonl -m org/policy -r verify.py:check
      hf-itp calibrate outputs/calibration --dataset-name org/prompts -m org/policy -r org/reward-model
      accelerate launch -m hf_itp.cli calibrate /shared/calibration -f prompts.jsonl -m org/policy
    """
    model = sources.agreed(context, "model", model, model_name_or_path=model_name_or_path)
    reward_model = sources.rewards_agreed(context, reward_model, reward_funcs, reward_model_name_or_path)
    given, columns = sources.read_source(
        file, dataset_name, dataset_config, dataset_train_split, prompt_column, context
    )
    template_keywords = template.template_keywords(tools, documents, chat_template_kwargs, columns)
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
        **template_keywords,
        reward_view=reward_view,
        reward_kwargs=reward_columns(columns),
        predict=predict,
        batch_size=batch_size,
        progress=False if quiet else None,
        max_new_tokens=max_new_tokens,
        **sampling,
    )
    left_out = int(calibrator.no_reward.sum())
    without = f", {left_out} without a reward left out" if left_out else ""
    print(
        f"{len(calibrator.fingerprints)} prompts with {calibrator.num_reference} references each{without}: "
        f"{output_dir}"
    )
    if (predictor := calibrator.predictor) is not None:
        print(
            f"Prompts without references: predicted quantiles are off by {predictor.calibration_error:.3f} (one set "
            f"for all: {predictor.baseline_error:.3f})"
        )
