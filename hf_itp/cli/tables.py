"""Tables of candidates on the terminal: their rewards, their probabilities under each rule, and the winners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, OverflowMethod
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hf_itp.cli.streams import can_write

PLAIN = "plain sampling"
_MARKS = {PLAIN: "▼", "best_of_n": "★", "pessimism": "◆"}
_ASCII_MARKS = {PLAIN: "v", "best_of_n": "*", "pessimism": "o"}


def print_pool(console: Console, prompt: str, record: Mapping[str, Any]) -> None:
    """
    Print the candidates of one prompt from best to worst, then the responses returned, then the diagnostics.

    Args:
        console (`Console`): Where to print.
        prompt (`str`): The prompt, for the heading.
        record (`Mapping`): `candidates`, each with `response`, `reward`, `num_tokens` and `probabilities` by rule;
            `returned`, the index of a candidate by rule; `diagnostics`.
    """
    candidates, returned, rule_marks = record["candidates"], record["returned"], _marks(console)
    console.print(Rule(Text(prompt, style="bold"), align="left"))
    table = Table(expand=True, box=None, padding=(0, 1), header_style="bold")
    table.add_column("", width=3, no_wrap=True)
    table.add_column("candidate", ratio=1, no_wrap=True, overflow=_cut(console))
    for heading in ("tokens", "reward", *candidates[0]["probabilities"]):
        table.add_column(heading, justify="right", no_wrap=True)
    for index in sorted(range(len(candidates)), key=lambda index: -candidates[index]["reward"]):
        candidate = candidates[index]
        marks = "".join(mark for name, mark in rule_marks.items() if returned[name] == index)
        chances = [f"{chance:.1%}" if chance > 0 else "-" for chance in candidate["probabilities"].values()]
        text = " ".join(candidate["response"].split())
        row = [marks, escape(text), str(candidate["num_tokens"]), f"{candidate['reward']:.3f}", *chances]
        table.add_row(*row, style=None if candidate["probabilities"]["pessimism"] > 0 else "dim")
    console.print(table)
    console.print()
    for index in dict.fromkeys(returned[name] for name in rule_marks):
        names = [f"{mark} {name}" for name, mark in rule_marks.items() if returned[name] == index]
        heading = Text(f"{', '.join(names)} returned (reward {candidates[index]['reward']:.3f}):", style="bold")
        console.print(heading)
        console.print(Text(candidates[index]["response"]))
        console.print()
    console.print(Text(_diagnostics(record["diagnostics"], len(candidates)), style="italic"))
    console.print()


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the summary of all prompts: `mean_rewards` by rule, `num_tokens`, `path`, `seconds`, `picture`."""
    marks = _marks(console)
    means = ", ".join(f"{marks[name]} {name} {mean:.3f}" for name, mean in summary["mean_rewards"].items())
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items())
    console.print(Text(f"Mean reward returned: {means}."))
    console.print(Text(f"{summary['num_tokens']} tokens drawn ({summary['path']}). Seconds: {seconds}."))
    picture = summary["picture"]
    console.print(Text(f"Picture: {picture}" if picture else "No picture: it needs matplotlib (hf-itp[plots])."))


def _marks(console: Console) -> dict[str, str]:
    return _MARKS if can_write("".join(_MARKS.values()), console.encoding) else _ASCII_MARKS


def _cut(console: Console) -> OverflowMethod:
    """Return how to cut a text that is too long."""
    return "ellipsis" if can_write("…", console.encoding) else "crop"


def _diagnostics(diagnostics: Mapping[str, Any], num_candidates: int) -> str:
    return (
        f"Pessimism's normalizer {diagnostics['normalizer']:.3f}; "
        f"acceptance rate {diagnostics['acceptance_rate']:.2f}; "
        f"effective sample size {diagnostics['effective_sample_size']:.1f} of {num_candidates}; "
        f"{sum(diagnostics['num_tokens'])} tokens drawn."
    )
