"""`hf-itp push`: push a policy to the Hub together with how to decode it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_itp.cli import options
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import EMBEDDED, loading_bars, recommendation
from hf_itp.errors import ArgumentError
from hf_itp.generation.keywords import KEYWORDS

if TYPE_CHECKING:
    from hf_itp.calibration import RewardCalibrator


card = partial(typer.Option, rich_help_panel="Card")


def push(
    model: Annotated[str, typer.Argument(help="Policy: local folder, Hub id, or 'embedded'.")],
    repo_id: Annotated[str, typer.Argument(help="Repository: name or org/name; created if it does not exist.")],
    strategy: Annotated[
        str | None, options.selecting("--strategy", "-s", help=f"{KEYWORDS['strategy'].help} {options.RECOMMENDED}.")
    ] = None,
    reward_model: Annotated[
        str | None,
        options.selecting("--reward-model", "-r", help=f"{KEYWORDS['reward_model'].help} {options.RECOMMENDED}."),
    ] = None,
    num_candidates: Annotated[
        int | None,
        options.selecting(
            "--num-candidates",
            "-n",
            min=1,
            help=f"{KEYWORDS['num_candidates'].help} {options.RECOMMENDED}, else {options.NUM_CANDIDATES}.",
        ),
    ] = None,
    reward_view: Annotated[
        str | None,
        options.selecting(help=f"{KEYWORDS['reward_view'].help} {options.RECOMMENDED}, else full."),
    ] = None,
    beta: options.Beta = None,
    set_: options.Fields = None,
    calibration: Annotated[
        Path | None, options.selecting(help="Folder of a calibration. Default: the policy's own, if it has one.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    gated: Annotated[str | None, typer.Option(help="Have readers request access: auto or manual.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; created if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Policy with its decoding recommendation",
    license_: Annotated[
        str | None, card("--license", help="License id on the Hub, e.g. apache-2.0. Default: the base model's.")
    ] = None,
    base_model: Annotated[str | None, card(help="Hub id of the model it was trained from.")] = None,
    dataset: Annotated[list[str] | None, card(help="Hub id of a data set it was trained on; repeat for more.")] = None,
    language: Annotated[str | None, card(help="Its language, e.g. en.")] = None,
    picture: Annotated[Path | None, card(help="Picture for the card, such as a scaling curve.")] = None,
    limit: Annotated[list[str] | None, card(help="Sentence on what it cannot do; repeat for more.")] = None,
    debug: options.Debug = False,
) -> None:
    """
    Push a policy in one commit: weights, tokenizer, calibration, how to decode it, and a card.

    Anyone can then decode as recommended with generate(strategy="auto").
    The card keeps what training wrote into the policy's README.md.
    Pushing the same content again makes no commit. The token is that of
    hf auth login, or HF_TOKEN.

    [bold]Examples[/bold]

      hf-itp push outputs/ctrl me/ctrl-policy
      hf-itp push outputs/ctrl me/policy -s pessimism --beta 0.1 -n 32 -r org/reward-model
      hf-itp push outputs/ctrl org/policy --create-pr --license apache-2.0
    """
    if gated not in (None, "auto", "manual"):
        raise typer.BadParameter(f"must be auto or manual, got {gated!r}. Choose one.", param_hint="'--gated'")
    if picture is not None and not picture.is_file():
        raise typer.BadParameter(f"must be a file, got none at {picture}. Check the path.", param_hint="'--picture'")
    fields = parse_fields(set_ or [], beta=beta)
    from hf_itp import Policy, get_strategy, push_to_hub
    from hf_itp.hub.push import known_facts
    from hf_itp.policies.checks import policy_tokenizer

    if strategy is not None:
        get_strategy(strategy, **fields)
    with loading_bars(shown=False):
        policy = Policy.from_pretrained(model)
    recommended = _recommended(policy.model, strategy, reward_model, num_candidates, reward_view, fields)
    facts: dict[str, Any] = {
        "license": license_,
        "base_model": base_model,
        "datasets": dataset,
        "language": language,
        "picture": None if picture is None else str(picture),
    }
    known = known_facts(policy.model, repo_id)
    commit = push_to_hub(
        policy.model,
        repo_id,
        # As it was saved: that of `policy` is set up for batches.
        tokenizer=policy_tokenizer(policy.model),
        calibrator=_calibrator(model, calibration),
        private=private or None,
        gated=cast('Literal["auto", "manual"] | None', gated),
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        facts=replace(
            known,
            limits=list(dict.fromkeys([*known.limits, *(limit or [])])),
            **{name: value for name, value in facts.items() if value is not None},
        ),
        **recommended,
    )
    print(commit.pr_url or commit.commit_url)


def _recommended(
    model: Any,
    strategy: str | None,
    reward_model: str | None,
    num_candidates: int | None,
    reward_view: str | None,
    fields: dict[str, Any],
) -> dict[str, Any]:
    """Return what the options recommend, filled up from what the policy recommends already."""
    from hf_itp.generation.recommendation import recommended_with_fields

    if strategy is not None:
        return {
            "strategy": strategy,
            "reward_model": reward_model,
            "num_candidates": num_candidates or options.NUM_CANDIDATES,
            "reward_view": reward_view or "full",
            **fields,
        }
    given = {
        "--reward-model": reward_model, "--num-candidates": num_candidates, "--reward-view": reward_view,
        "--beta or --set": fields or None,
    }  # fmt: skip
    named = [name for name, value in given.items() if value is not None]
    if recommendation(model) is None:
        if named:
            raise ArgumentError(
                f"`{named[0]}` must come with a strategy, got none, and the policy recommends none. Add --strategy, "
                f"or leave {named[0]} out."
            )
        return {}
    asked = {"reward_model": reward_model, "num_candidates": num_candidates, "reward_view": reward_view}
    ours = recommended_with_fields(model, asked, fields)
    chosen = ours["strategy"]
    return {
        "strategy": chosen.name,
        "reward_model": ours.get("reward_model"),
        "num_candidates": ours.get("num_candidates", options.NUM_CANDIDATES),
        "reward_view": ours.get("reward_view", "full"),
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
