"""`hf-itp sweep`: replay strategies over a pool, for every number of candidates."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hf_itp.cli import options

if TYPE_CHECKING:
    from hf_itp.evaluation.sweep import Replay
    from hf_itp.evaluation.tables import RewardTable


def sweep(
    pool: Annotated[
        Path,
        typer.Argument(
            help="Pool: .jsonl, .jsonl.gz or .parquet, a prompt per row with `rewards` (a list, null is no reward), "
            "if known also `gold_rewards` and `num_tokens`."
        ),
    ],
    strategies: Annotated[
        str,
        options.selecting(
            "--strategies",
            "-s",
            help="Strategies with settings, e.g. best_of_n,pessimism:beta=0.05,pessimism:beta=0.2,normalize=zscore; "
            "all is a grid.",
        ),
    ] = "all",
    sizes: Annotated[
        str | None,
        options.selecting("--n", help="Numbers of candidates. Default: powers of two up to the smallest pool."),
    ] = None,
    rewards: Annotated[
        str | None, typer.Option(help="Column of rewards that select: NAME of `rewards.NAME`. Default: the only one.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option(help="Column of what is to be achieved. Default: `gold_rewards`, if there.")
    ] = None,
    replicates: Annotated[
        int, options.drawing(min=1, help="Random subsets per prompt, where a law on subsets has no closed form.")
    ] = 50,
    seed: Annotated[int, options.drawing(min=0, help="Seed of the subsets.")] = 0,
    with_replacement: Annotated[
        bool, options.drawing("--with-replacement", help="Draw each candidate from the whole pool.")
    ] = False,
    output: Annotated[
        Path | None,
        options.output(
            "--output", "-o", help="Folder for sweep.csv, sweep.png and sweep.html. Default: CSV to stdout"
        ),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """
    Replay strategies over a pool, for every number of candidates.

    Says what each strategy would return with N candidates, by its exact law, without drawing anything: the mean
    reward, the mean gold reward, the win rate against the pool's own responses, a bound of the KL divergence and the
    effective number of candidates. Standard errors are over prompts.

    \b
      hf-itp sweep pool.jsonl --strategies best_of_n,pessimism:beta=0.1 --n 1,4,16,64 --output report
    """
    import sys

    from hf_itp.errors import ArgumentError
    from hf_itp.evaluation.curves import plot_sweep
    from hf_itp.evaluation.page import check_can_plot, sweep_page
    from hf_itp.evaluation.specs import parse_strategies
    from hf_itp.evaluation.sweep import COLUMNS
    from hf_itp.evaluation.sweep import sweep as replay_all
    from hf_itp.evaluation.tables import reward_table
    from hf_itp.pools.file import read_rows

    progress = Console(stderr=True, quiet=quiet)
    if output is not None:
        check_can_plot()
    with progress.status(f"Reading {pool} ..."):
        table = reward_table(read_rows(pool), rewards, gold)
    chosen = parse_strategies(strategies, table)
    numbers = _powers_of_two(table.smallest) if sizes is None else _numbers(sizes)
    replays: list[Replay] = []
    with progress.status("Replaying ...") as status:
        for replay in replay_all(
            table, chosen, numbers, replicates=replicates, seed=seed, replacement=with_replacement
        ):
            replays.append(replay)
            status.update(f"Replaying ... {replay.label}, N = {replay.num_candidates}")
    if not replays:
        raise ArgumentError("`--n` must hold a size that a strategy can be replayed at, got none. Pass smaller ones.")
    rows = [replay.row() for replay in replays]
    if output is None:
        _write(csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n"), rows)
        return
    output.mkdir(parents=True, exist_ok=True)
    with (output / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        _write(csv.DictWriter(file, COLUMNS, lineterminator="\n"), rows)
    plot_sweep(replays, f"{table.num_prompts} prompts of {pool.name}").savefig(output / "sweep.png", dpi=150)
    page = sweep_page(replays, read_rows(pool), table.rewards_name, table.gold_name, pool.name, _summary(table))
    (output / "sweep.html").write_text(page, encoding="utf-8")
    if not quiet:
        _print(progress, replays, table)
        progress.print(f"Written to {output}: sweep.csv, sweep.png, sweep.html", highlight=False)


def _write(writer: csv.DictWriter, rows: list[dict[str, Any]]) -> None:
    writer.writeheader()
    writer.writerows(rows)


def _print(console: Console, replays: list[Replay], rewards: RewardTable) -> None:
    """Print a line per strategy, a column per number of candidates: gold where there is gold, else the reward."""
    sizes = sorted({replay.num_candidates for replay in replays})
    has_gold = replays[0].gold is not None
    table = Table(
        title="Mean gold reward" if has_gold else "Mean reward (the one that selects)",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("strategy", no_wrap=True)
    for size in sizes:
        table.add_column(f"N={size}", justify="right", no_wrap=True)
    for label in dict.fromkeys(replay.label for replay in replays):
        own = {replay.num_candidates: replay for replay in replays if replay.label == label}
        values = {size: replay.proxy if replay.gold is None else replay.gold for size, replay in own.items()}
        table.add_row(label, *(f"{values[size].mean():.3f}" if size in values else "-" for size in sizes))
    console.print(table)
    if rewards.no_reward:
        console.print(f"{rewards.no_reward} responses have no reward and were left out.", highlight=False)


def _summary(table: RewardTable) -> str:
    sizes = f"{table.smallest}" if table.smallest == table.largest else f"{table.smallest} to {table.largest}"
    without = f", and {table.no_reward} responses without one" if table.no_reward else ""
    gold = f"gold is {table.gold_name}" if table.gold_name else "without gold, nothing here says which is better"
    return (
        f"{table.num_prompts} prompts with {sizes} rewards each{without}. Strategies see {table.rewards_name}; {gold}."
    )


def _powers_of_two(largest: int) -> list[int]:
    powers = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    return powers if powers[-1] == largest else [*powers, largest]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be whole numbers, e.g. 1,4,16,64.", param_hint="'--n'") from None
