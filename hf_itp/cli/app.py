"""The `hf-itp` program: its commands, and how its errors and warnings reach the terminal."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from hf_itp._version import __version__
from hf_itp.cli import options
from hf_itp.cli import train as training
from hf_itp.cli.calibrate import calibrate
from hf_itp.cli.demo import demo
from hf_itp.cli.evaluate import evaluate
from hf_itp.cli.generate import generate
from hf_itp.cli.launches import launch_left
from hf_itp.cli.push import push
from hf_itp.cli.strategies import strategies
from hf_itp.cli.streams import writing_all
from hf_itp.cli.sweep import sweep
from hf_itp.errors import ItpError, ItpWarning

# Words of the library's errors, as a user of the program knows them.
_AS_OPTIONS = {
    "`model_id`": "`--model`",
    "`device`": "`--device`",
    "device='cpu'": "--device cpu",
    "`plain`": "`--plain`",
    "pass the prompts as text": "add --plain",
}

app = typer.Typer(
    name="hf-itp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(context_settings=options.CONTEXT)(demo)
app.command(context_settings=options.CONTEXT)(generate)
app.command(context_settings=options.CONTEXT)(strategies)
app.command(context_settings=options.CONTEXT)(sweep)
app.command(context_settings=options.CONTEXT)(calibrate)
app.command(context_settings=training.CONTEXT)(training.train)
app.command(context_settings=options.CONTEXT)(evaluate)
app.command(context_settings=options.CONTEXT)(push)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hf-itp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """
    Spend compute at inference without being fooled by the reward model: a
    policy draws N candidates, a reward model scores them, a strategy selects.

    [bold]Start here[/bold]

      hf-itp demo                                  see it work, offline
      hf-itp generate "Why is the moon bright?"    one better response
      hf-itp strategies                            what can select, and how
      hf-itp sweep pool.jsonl                      which strategy, which N, on a pool
      hf-itp calibrate, train, evaluate, push      a policy trained for its strategy

    Results go to stdout, everything else to stderr. Exit codes: 0 success,
    1 an error, 2 a command that does not parse, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the program and exit.

    Args:
        arguments (`Sequence[str]`, *optional*): The words after the program's name. Defaults to the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with writing_all(), _readable_warnings(), launch_left():
            app(arguments, prog_name="hf-itp")
    except Exception as error:
        if "--debug" in arguments:
            raise
        # Errors of other libraries carry no remedy: name their kind and where to see more.
        ours = isinstance(error, ItpError)
        message = str(error) if ours else f"{type(error).__name__}: {error}\nRun again with --debug to see where."
        for word, option in _AS_OPTIONS.items() if ours else ():
            message = message.replace(word, option)
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/bold red] {escape(message)}")
        sys.exit(1)


@contextmanager
def _readable_warnings() -> Iterator[None]:
    """Print our warnings as one line each, without file name and source line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=ItpWarning)
        show_others = warnings.showwarning
        shown: set[str] = set()

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, ItpWarning):
                # Warnings of different prompts differ in their numbers only: print one of each kind.
                kind = re.sub(r"[\d.]+(e-?\d+)?", "", str(message))
                if kind in shown:
                    return
                shown.add(kind)
                console = Console(stderr=True, soft_wrap=True, highlight=False)
                console.print(f"[yellow]Warning:[/yellow] {escape(str(message))}")
            else:
                show_others(message, category, *rest, **more)

        warnings.showwarning = show
        yield
