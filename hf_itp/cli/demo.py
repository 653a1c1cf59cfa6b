"""`hf-itp demo`: draw candidates for four prompts and show what each rule selects from them."""

from __future__ import annotations

import json as json_lines
import sys
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from hf_itp.cli import options
from hf_itp.cli.models import EMBEDDED, EMBEDDED_TEMPERATURE, load_reward_models
from hf_itp.cli.records import record_of, to_json
from hf_itp.cli.tables import PLAIN, print_pool, print_summary
from hf_itp.errors import LoadError, MissingDependencyError

if TYPE_CHECKING:
    import torch


def demo(
    model: options.Model = EMBEDDED,
    reward_model: options.RewardModels = [EMBEDDED],  # noqa: B006  typer copies it
    device: options.Device = None,
    num_candidates: options.NumCandidates = options.NUM_CANDIDATES,
    max_new_tokens: options.MaxNewTokens = 48,
    temperature: Annotated[float, options.drawing(help=options.TEMPERATURE_HELP)] = EMBEDDED_TEMPERATURE,
    seed: options.Seed = 0,
    beta: options.Beta = None,
    output: Annotated[Path, options.output("--output", "-o", help="File of the picture.")] = Path("outputs/demo.png"),
    json: Annotated[bool, options.output("--json", help="Write one JSON document instead of tables.")] = False,
    debug: options.Debug = False,
) -> None:
    """
    Show what plain sampling, best_of_n and pessimism select from the same candidates.

    Draws candidates for four questions; tables and a picture show their
    rewards, their probabilities of being returned, and which were returned.
    By default it runs on the embedded models, a language model of 135 million
    parameters and a reward model trained on human preferences: no account, no
    network.

    [bold]Examples[/bold]

      hf-itp demo
      hf-itp demo --num-candidates 64 --beta 0.05
      hf-itp demo -m org/policy -r org/reward-model --max-new-tokens 128
    """
    import torch

    from hf_itp import Policy, get_strategy
    from hf_itp.functional import in_reward_units
    from hf_itp.policies.policy import as_conversations
    from hf_itp.strategies.rewarded import OnRewarded

    started = time.perf_counter()
    pessimism, best = get_strategy("pessimism", beta=beta), OnRewarded(get_strategy("best_of_n"))
    scale = pessimism.settings()["normalize"]
    progress = Console(stderr=True, highlight=False)
    progress.print(f"Loading policy {model!r} and reward model {', '.join(map(repr, reward_model))} ...")
    policy = Policy.from_pretrained(model, device)
    reward = load_reward_models(reward_model, device=policy.model.device)
    loading = time.perf_counter() - started

    questions = _questions()
    prompts = as_conversations(questions, policy.tokenizer)
    progress.print(f"Drawing {num_candidates} candidates for each of {len(prompts)} prompts ...")
    drawing: dict[str, Any] = {"num_candidates": num_candidates, "max_new_tokens": max_new_tokens}
    drawing["temperature"] = temperature
    result = policy.generate(prompts, strategy=pessimism, reward_model=reward, seed=seed, **drawing)
    # Other rules select from the same rewards, without drawing again.
    laws = {"best_of_n": best.law(result.candidate_rewards), "pessimism": result.probabilities}
    # In the picture and the tables it stands beside rewards.
    pools = zip(result.diagnostics["normalizer"], result.candidate_rewards, strict=True)
    result.diagnostics["normalizer"] = torch.stack(
        [in_reward_units(value, rewards[~rewards.isnan()], scale) for value, rewards in pools]
    )
    ties = torch.Generator().manual_seed(seed)
    winners = {
        # Plain sampling would have returned the first candidate.
        PLAIN: result.selected.new_zeros(len(prompts)),
        "best_of_n": torch.cat(
            [best.select(rewards, 1, ties, row).indices for row, rewards in enumerate(result.candidate_rewards)]
        ),
        "pessimism": result.selected[:, 0],
    }
    strength = f"beta {beta:g}" if beta is not None else f"beta {pessimism.settings()['beta']} standard deviations"
    picture = _draw(
        output,
        result.candidate_rewards,
        result.probabilities,
        normalizer=result.diagnostics["normalizer"],
        winners=winners,
        labels=questions,
        title=f"Pessimism never returns what scores below the normalizer ({num_candidates} candidates, {strength})",
    )
    records = [
        _replayed(record_of(result, row, prompt, policy.text_of(prompt), all_candidates=True), row, laws, winners)
        for row, prompt in enumerate(prompts)
    ]
    summary = {
        "mean_rewards": {
            name: result.candidate_rewards.gather(1, chosen[:, None]).nanmean().item()
            for name, chosen in winners.items()
        },
        "num_tokens": int(result.diagnostics["num_tokens"].sum()),
        "path": result.diagnostics["path"],
        "seconds": {"loading": loading, **result.diagnostics["seconds"], "total": time.perf_counter() - started},
        "picture": picture,
    }
    if json:
        print(to_json({**summary, "prompts": records}, indent=2, encoding=sys.stdout.encoding))
        return
    console = Console(highlight=False)
    for question, record in zip(questions, records, strict=True):
        print_pool(console, question, record)
    print_summary(console, summary)


def _questions() -> list[str]:
    lines = files("hf_itp.cli").joinpath("demo_prompts.jsonl").read_text("utf-8").splitlines()
    return [json_lines.loads(line)["prompt"] for line in lines]


def _replayed(
    record: dict[str, Any], row: int, laws: Mapping[str, torch.Tensor], winners: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return the record of one prompt with the law and the winner of every rule, not only of pessimism."""
    candidates = [
        {
            "response": candidate["response"],
            "num_tokens": candidate["num_tokens"],
            "reward": candidate["reward"],
            "probabilities": {name: law[row, index].item() for name, law in laws.items()},
        }
        for index, candidate in enumerate(record["candidates"])
    ]
    diagnostics = {name: value for name, value in record["diagnostics"].items() if name != "seconds"}
    returned = {name: chosen[row].item() for name, chosen in winners.items()}
    return {"prompt": record["prompt"], "candidates": candidates, "returned": returned, "diagnostics": diagnostics}


def _draw(path: Path, rewards: torch.Tensor, probabilities: torch.Tensor, **details: Any) -> str | None:
    """Draw the picture and return its path, or `None` without matplotlib."""
    from hf_itp.evaluation import plot_pool

    try:
        figure = plot_pool(rewards, probabilities, **details)
    except MissingDependencyError:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise LoadError(f"`--output` must be writable, got {str(path)!r} ({error}). Name a .png file.") from error
    return str(path)
