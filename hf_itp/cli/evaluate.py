"""`hf-itp evaluate`: what a trained policy has gained over its reference policy, and how far it has moved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_itp.cli import options, sources
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import load_reward_models, loading_bars, recommendation
from hf_itp.cli.records import to_json
from hf_itp.cli.template import ChatTemplateKwargs, template_arguments_in
from hf_itp.errors import ArgumentError
from hf_itp.generation.keywords import KEYWORDS

if TYPE_CHECKING:
    from hf_itp.evaluation import PolicyEvaluation

_SAID = "Default: what the policy recommends"
_TOLD = {
    "win_rate": "a response beats one of the reference policy",
    "kl": "nats from the reference policy",
    "reward": "mean reward of the policy",
    "reference_reward": "mean reward of the reference policy",
}


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Trained policy: folder, adapter or Hub id.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Prompts that were not trained on: .jsonl (or .jsonl.gz) with a `prompt` or `messages` per line, "
            "whose other columns go to the reward; any other file one prompt per line.",
        ),
    ] = None,
    dataset_name: sources.DatasetName = None,
    dataset_config: sources.DatasetConfig = None,
    dataset_test_split: Annotated[str, typer.Option(help="Its split.")] = "test",
    prompt_column: sources.PromptColumn = "prompt",
    plain: options.Plain = False,
    reference: Annotated[
        str | None,
        options.models(
            help="Reference policy. Default: of an adapter its base model, else the one that the calibration beside "
            "the policy was drawn from."
        ),
    ] = None,
    reward_model: Annotated[
        list[str] | None, options.models("--reward-model", "-r", help=f"{options.REWARD_MODEL_HELP} {_SAID}.")
    ] = None,
    reward_funcs: sources.TrlRewards = None,
    reward_model_name_or_path: sources.TrlReward = None,
    device: options.Device = None,
    strategy: Annotated[
        str | None,
        options.selecting("--strategy", "-s", help=f"{KEYWORDS['strategy'].help} {_SAID}, else best_of_n."),
    ] = None,
    num_candidates: Annotated[
        int | None,
        options.selecting(
            "--num-candidates", "-n", min=1, help=f"N of the strategy, of both policies. {_SAID}, else 4."
        ),
    ] = None,
    beta: options.Beta = None,
    set_: options.Fields = None,
    calibration: Annotated[
        Path | None,
        options.drawing(help="Folder of a calibration that has the prompts: no responses of the reference are drawn."),
    ] = None,
    num_responses: Annotated[
        int, options.drawing("--num-responses", "-g", min=1, help="Responses of the policy per prompt.")
    ] = 32,
    num_reference: Annotated[
        int | None,
        options.drawing("--num-reference", "-k", min=1, help="Those of the reference policy. Default: as many."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, options.drawing(min=1, help="Maximum tokens of a response. Default: the calibration's, else 256.")
    ] = None,
    temperature: Annotated[
        float | None,
        options.drawing(help=f"{options.TEMPERATURE_HELP} Default: the calibration's, else the policy's."),
    ] = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    output_dir: Annotated[
        Path | None, options.output(help="Folder that keeps the responses, from which an interrupted run resumes.")
    ] = None,
    json: Annotated[
        str | None,
        options.output(metavar="FILE", help="Write everything as JSON, each prompt's numbers too; - is stdout."),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """
    Compare a trained policy with the policy it was trained from, on prompts of a file.

    Draws responses of both, scores them, and estimates without bias, with 95 %
    intervals over prompts: how often a response of the policy has the higher
    reward; the same for what a strategy returns from N candidates of each (of
    best-of-n: best of N against best of N); the same against a single response of
    the reference policy; and the KL divergence in nats.

    [bold]What the numbers mean[/bold]

      0.5 is a policy that has gained nothing. Training for a strategy should raise
      the win rate under that strategy, even where the plain one rises less.
      Compare policies at equal KL: further away it is easier to win.
      All are by the reward model: they do not show whether it was fooled.

    [bold]Examples[/bold]

      hf-itp evaluate outputs/ctrl -f held_out.jsonl
      hf-itp evaluate org/adapter -f held_out.jsonl -r org/reward-model -s best_of_n -n 16 -g 64
      hf-itp evaluate outputs/ctrl --reference org/base -f held_out.jsonl --json result.json
      hf-itp evaluate outputs/ctrl -f prompts.jsonl --calibration outputs/ctrl --output-dir outputs/judged
    """
    reward_model = sources.rewards_agreed(context, reward_model or [], reward_funcs, reward_model_name_or_path)
    fields, template = parse_fields(set_ or [], beta=beta), template_arguments_in(chat_template_kwargs)
    given, columns = sources.read_source(
        file, dataset_name, dataset_config, dataset_test_split, prompt_column, context
    )
    from hf_itp import Policy, RewardCalibrator, get_strategy
    from hf_itp.evaluation import evaluate_policy
    from hf_itp.policies.policy import as_conversations

    if strategy is not None:
        get_strategy(strategy, **fields)
    calibrator = None if calibration is None else RewardCalibrator.from_pretrained(calibration)
    with loading_bars(shown=not quiet):
        policy = Policy.from_pretrained(model, device)
        chosen = _chosen(policy.model, strategy, num_candidates, reward_model, fields)
        base = _reference(model, policy.model, reference, device)
        chosen["reward_model"] = _loaded(chosen["reward_model"], policy.model.device)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    result = evaluate_policy(
        policy.model,
        base,
        chosen["reward_model"],
        as_conversations(given, policy.tokenizer, plain=plain),
        strategy=chosen["strategy"],
        num_candidates=chosen["num_candidates"],
        num_responses=num_responses,
        num_reference=num_reference,
        calibrator=calibrator,
        tokenizer=policy.tokenizer,
        chat_template_kwargs=template,
        reward_kwargs=columns,
        seed=seed,
        output_dir=output_dir,
        batch_size=batch_size,
        progress=False if quiet else None,
        **{name: value for name, value in sampling.items() if value is not None},
    )
    from accelerate import PartialState

    if PartialState().is_main_process:
        _write(result, json)


def _chosen(
    model: Any, strategy: str | None, num_candidates: int | None, reward_model: list[str], fields: dict[str, Any]
) -> dict[str, Any]:
    """Return strategy, N and reward model: as given, else as the policy recommends."""
    from hf_itp import get_strategy
    from hf_itp.generation.recommendation import recommended_with_fields

    ours: dict[str, Any] = {"num_candidates": num_candidates, "reward_model": reward_model or None}
    if recommendation(model) is not None:
        # Of a strategy that is not the policy's, only the reward model and N are the policy's.
        known = recommended_with_fields(model, ours, fields if strategy is None else {})
        ours = known | ({} if strategy is None else {"strategy": get_strategy(strategy, **fields)})
    else:
        ours["strategy"] = get_strategy(strategy or "best_of_n", **fields)
    if ours.get("reward_model") is None:
        raise ArgumentError(
            "`--reward-model` must be given for a policy that recommends none, got none. Add -r with the reward model "
            "that it was trained for."
        )
    return {**ours, "num_candidates": ours.get("num_candidates") or 4}


def _loaded(reward_model: Any, device: Any) -> Any:
    if isinstance(reward_model, list):
        return load_reward_models(reward_model, device=device)
    return reward_model.load(device)


def _reference(name: str, policy: Any, given: str | None, device: str | None) -> Any:
    """Return the reference policy; `None` for an adapter's base model, which is in memory already."""
    from hf_itp import Policy, RewardCalibrator
    from hf_itp.calibration.fingerprints import model_identity
    from hf_itp.errors import LoadError

    if given is not None:
        return Policy.from_pretrained(given, device).model
    if getattr(policy, "peft_config", None):
        return None
    try:
        beside = RewardCalibrator.from_pretrained(name)
    except LoadError:
        beside = None
    drawn_from = "" if beside is None else str(beside.policy["name"])
    if "/" not in drawn_from:
        raise ArgumentError(
            f"`--reference` must be given for a policy without adapters, got none, and no calibration beside {name!r} "
            "says where its reference policy is. Add --reference with the policy that it was trained from."
        )
    print(f"Reference policy: {drawn_from}, from which the calibration of {name} was drawn", file=sys.stderr)
    found = Policy.from_pretrained(drawn_from, device).model
    assert beside is not None
    beside.check_belongs(policy=model_identity(found))
    return found


def _write(result: PolicyEvaluation, json: str | None) -> None:
    text = to_json(result.to_dict(), indent=2, encoding=sys.stdout.encoding if json == "-" else None)
    if json == "-":
        print(text)
    elif json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        Path(json).write_text(text + "\n", encoding="utf-8")
    console = Console(stderr=json == "-")
    console.print(_table(result))
    for note in result.notes:
        console.print(Text(note))


def _table(result: PolicyEvaluation) -> Table:
    settings = result.settings
    strategy, n = settings["strategy"]["name"], settings["num_candidates"]
    told = _TOLD | {
        f"{strategy}_win_rate": f"{strategy} of {n} beats {strategy} of {n} of the reference policy",
        f"{strategy}_win_rate_against_plain": f"{strategy} of {n} beats one response of the reference policy",
    }
    table = Table(title=f"{settings['policy']} against {settings['reference']}", title_justify="left")
    for heading in ("", "mean", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    for name, values in result.to_dict()["results"].items():
        interval = "one prompt" if values["low"] is None else f"{values['low']:.3f} to {values['high']:.3f}"
        table.add_row(Text(told[name]), f"{values['mean']:.3f}", interval)
    counts = f"{settings['num_responses']} and {settings['num_reference']} responses"
    table.caption = f"{len(result.prompts)} prompts, {counts} each, rewards of {settings['reward_model']}"
    return table
