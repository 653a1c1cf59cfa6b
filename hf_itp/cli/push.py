"""`hf-itp push`: a policy to the Hub, with how it wants to be decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_itp.cli import options
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import EMBEDDED, loading_bars, recommendation
from hf_itp.errors import ArgumentError

if TYPE_CHECKING:
    from hf_itp.calibration import RewardCalibrator

CARD = "Card"


def push(
    model: Annotated[str, typer.Argument(help="The policy: a local folder, a Hub id, or 'embedded'.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: name or org/name; created if it is not there.")],
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", "-s", help="What to decode with. Default: what the policy recommends, if it does."),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", "-r", help="What the strategy scores with: a Hub id or 'embedded'."),
    ] = None,
    num_candidates: Annotated[
        int | None,
        typer.Option("--num-candidates", "-n", min=1, help="N to recommend. Default: what the policy does, else 16."),
    ] = None,
    beta: Annotated[float | None, typer.Option(help=options.BETA_HELP)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the strategy.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of a calibration. Default: the policy's own, if it has one.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    gated: Annotated[str | None, typer.Option(help="Readers have to ask: auto or manual.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; created if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Policy with its decoding recommendation",
    license_: Annotated[
        str | None, typer.Option("--license", help="Its name on the Hub, e.g. apache-2.0.", rich_help_panel=CARD)
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of what it was trained from.", rich_help_panel=CARD)
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of what it was trained on.", rich_help_panel=CARD)
    ] = None,
    language: Annotated[str | None, typer.Option(help="E.g. en.", rich_help_panel=CARD)] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A picture for it, such as a scaling curve.", rich_help_panel=CARD)
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="A sentence on what it cannot do.", rich_help_panel=CARD)
    ] = None,
    debug: options.Debug = False,
) -> None:
    """
    Push a policy in one commit: weights, tokenizer, calibration, how to decode it, and a card.

    Who loads it decodes as recommended with generate(strategy="auto"). Pushing
    the same content again makes no commit. The token is the one of hf auth login,
    or HF_TOKEN.

    [bold]Examples[/bold]

      hf-itp push outputs/ctrl me/ctrl-policy
      hf-itp push outputs/ctrl me/policy -s pessimism --beta 0.1 -n 32 -r org/reward-model
      hf-itp push outputs/ctrl org/policy --create-pr --license apache-2.0
    """
    if gated not in (None, "auto", "manual"):
        raise typer.BadParameter(f"{gated!r} is neither auto nor manual.", param_hint="'--gated'")
    if picture is not None and not picture.is_file():
        raise typer.BadParameter(f"There is no file {picture}.", param_hint="'--picture'")
    fields = parse_fields(set_ or [], beta=beta)
    from hf_itp import Policy, get_strategy, push_to_hub
    from hf_itp.hub.push import known_facts
    from hf_itp.policies.checks import policy_tokenizer

    if strategy is not None:
        get_strategy(strategy, **fields)
    with loading_bars(shown=False):
        policy = Policy.from_pretrained(model)
    recommended = _recommended(policy.model, strategy, reward_model, num_candidates, fields)
    card: dict[str, Any] = {
        "license": license_,
        "base_model": base_model,
        "datasets": dataset,
        "language": language,
        "picture": None if picture is None else str(picture),
        "limits": limit,
    }
    facts = replace(
        known_facts(policy.model, repo_id), **{name: value for name, value in card.items() if value is not None}
    )
    commit = push_to_hub(
        policy.model,
        repo_id,
        # As it was saved: the one that decodes is set up for batches.
        tokenizer=policy_tokenizer(policy.model),
        calibrator=_calibrator(model, calibration),
        private=private or None,
        gated=cast('Literal["auto", "manual"] | None', gated),
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        facts=facts,
        **recommended,
    )
    print(commit.pr_url or commit.commit_url)


def _recommended(
    model: Any, strategy: str | None, reward_model: str | None, num_candidates: int | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """What the options say, and where they say nothing of the strategy, what the policy recommends already."""
    from hf_itp.generation.recommendation import recommended_with_fields

    if strategy is not None:
        return {"strategy": strategy, "reward_model": reward_model, "num_candidates": num_candidates or 16, **fields}
    options = {"--reward-model": reward_model, "--num-candidates": num_candidates, "--beta or --set": fields or None}
    given = [name for name, value in options.items() if value is not None]
    if recommendation(model) is None:
        if given:
            raise ArgumentError(
                f"`{given[0]}` belongs to a strategy, but none is given and the policy recommends none, so it would "
                "not be used. Add --strategy, or leave it out."
            )
        return {}
    ours = recommended_with_fields(model, {"reward_model": reward_model, "num_candidates": num_candidates}, fields)
    chosen = ours["strategy"]
    return {
        "strategy": chosen.name,
        "reward_model": ours.get("reward_model"),
        "num_candidates": ours.get("num_candidates", 16),
        **chosen.settings(),
    }


def _calibrator(model: str, folder: Path | None) -> RewardCalibrator | None:
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HFValidationError, HTTPError

    from hf_itp.calibration import RewardCalibrator
    from hf_itp.calibration.storage import SIDECAR

    if folder is not None:
        return RewardCalibrator.from_pretrained(folder)
    if Path(model).expanduser().is_dir():
        return RewardCalibrator.from_pretrained(model) if (Path(model) / SIDECAR).is_file() else None
    try:
        has_one = model != EMBEDDED and file_exists(model, SIDECAR)
    except (HTTPError, HFValidationError, OSError):
        has_one = False
    return RewardCalibrator.from_pretrained(model) if has_one else None
