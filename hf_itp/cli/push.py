"""`hf-itp push`: a policy to the Hub, with how it wants to be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_itp.cli import options
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import load_policy, loading_bars


def push(
    folder: Annotated[str, typer.Argument(help="The policy: a local folder or a Hub id.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: name or org/name; created if it is not there.")],
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", "-s", help="What to decode with; default: what the folder recommends, if it does."),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", "-r", help="What it scores with: a Hub id or 'embedded'.")
    ] = None,
    num_candidates: options.NumCandidates = 16,
    beta: Annotated[float | None, typer.Option(help=options.BETA_HELP, rich_help_panel=options.SELECTING)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any field of the strategy.", rich_help_panel=options.SELECTING
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of a calibration; default: the policy's own, if it has one.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; created if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Policy with its decoding recommendation",
    debug: options.Debug = False,
) -> None:
    """
    Push a policy in one commit: weights, tokenizer, calibration, how to decode it, and a card.

    Who loads it decodes as recommended with generate(strategy="auto"). Pushing
    the same content again makes no commit.

    [bold]Examples[/bold]

      hf-itp push outputs/ctrl me/ctrl-policy
      hf-itp push outputs/ctrl me/policy -s pessimism --beta 0.1 -n 32 -r org/reward-model
      hf-itp push outputs/ctrl org/policy --create-pr
    """
    fields = parse_fields(set_ or [], beta=beta)
    with loading_bars(shown=False):
        policy = load_policy(folder)
    from hf_itp import RewardCalibrator, push_to_hub
    from hf_itp.recommendation import ENTRY

    entry = getattr(policy.model.generation_config, ENTRY, None)
    if strategy is None and isinstance(entry, dict):
        known = ("strategy", "reward_model", "num_candidates", "reward_model_revision")
        strategy, fields = entry["strategy"], {k: v for k, v in entry.items() if k not in known} | fields
        reward_model = reward_model or entry.get("reward_model")
        num_candidates = entry.get("num_candidates", num_candidates)
    own = Path(folder) / "calibration.json"
    place = calibration or (Path(folder) if own.is_file() else None)
    commit = push_to_hub(
        policy.model,
        repo_id,
        tokenizer=policy.tokenizer,
        strategy=strategy,
        reward_model=reward_model,
        num_candidates=num_candidates,
        calibrator=None if place is None else RewardCalibrator.from_pretrained(place),
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        **fields,
    )
    print(commit.pr_url or commit.commit_url)
