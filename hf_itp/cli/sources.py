"""Options under TRL's names, and prompts with their columns from a file or a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hf_itp.cli import options
from hf_itp.cli.prompts import read_rows
from hf_itp.errors import ArgumentError

if TYPE_CHECKING:
    from hf_itp.rewards.base import Prompt

_T = TypeVar("_T")

TrlModel = Annotated[str | None, options.models("--model-name-or-path", help="TRL's name of --model.")]
TrlReward = Annotated[
    str | None, options.models("--reward-model-name-or-path", help="TRL's name of one --reward-model.")
]
TrlRewards = Annotated[
    list[str] | None, options.models("--reward-funcs", help="TRL's name of --reward-model; repeat for more.")
]
DatasetName = Annotated[
    str | None, typer.Option(help="Data set in place of --file: Hub id, folder, or file that `datasets` reads.")
]
DatasetConfig = Annotated[str | None, typer.Option(help="Configuration of the data set.")]
PromptColumn = Annotated[str, typer.Option(help="Column of its prompts; the others go to the reward.")]


def agreed(context: typer.Context, own: str, value: _T, **spellings: _T | None) -> _T:
    """
    Return the value of an option that has several names.

    Args:
        own (`str`), value: Our name of the option and its value, which may be its default.
        spellings: The values under TRL's names; `None` if not given.

    Raises:
        `ArgumentError`: If two names are given with different values.
    """
    source = context.get_parameter_source(own)
    given = {} if source is not None and source.name == "DEFAULT" else {own: value}
    given |= {name: other for name, other in spellings.items() if other is not None}
    (first, chosen), *others = (given or {own: value}).items()
    for name, other in others:
        if other != chosen:
            one, another = (f"--{spelled.replace('_', '-')}" for spelled in (first, name))
            raise ArgumentError(
                f"`{one}` and `{another}` are two names of one option and must agree, got {chosen!r} and {other!r}. "
                "Leave one of them out."
            )
    return chosen


def rewards_agreed(
    context: typer.Context, reward_model: list[str], reward_funcs: list[str] | None, name_or_path: str | None
) -> list[str]:
    """Return the reward models, which have three names; raise as [`agreed`]."""
    one = None if name_or_path is None else [name_or_path]
    # An option that may be repeated is empty rather than None if it is not given.
    spelled = {"reward_funcs": list(reward_funcs or []) or None, "reward_model_name_or_path": one}
    return agreed(context, "reward_model", list(reward_model), **spelled)


def read_source(
    file: Path | None, dataset_name: str | None, config: str | None, split: str, column: str, context: typer.Context
) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """
    Return prompts, and the columns beside them with one entry per prompt.

    Args:
        file (`Path`, *optional*): What [`read_rows`] takes.
        dataset_name, config, split, column (`str`): A data set in its place, for [`~pools.datasets.load_rows`].

    Raises:
        `ArgumentError`: If not exactly one of both is given, or an option of a data set without it.
    """
    if (file is None) == (dataset_name is None):
        got = "neither" if file is None else "both"
        raise ArgumentError(
            f"One of `--file` and `--dataset-name` must be given, got {got}. Name one source of prompts."
        )
    if dataset_name is None:
        assert file is not None
        for name in ("dataset_config", "dataset_train_split", "dataset_test_split", "prompt_column"):
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                raise ArgumentError(
                    f"`--{name.replace('_', '-')}` must come with `--dataset-name`, got a file. Leave it out."
                )
        return read_rows([], file)
    from hf_itp.pools.datasets import check_column, load_rows
    from hf_itp.prompts import check_prompts

    rows = load_rows(dataset_name, config, split)
    check_column(column, rows)
    others = {name: rows[name][:] for name in rows.column_names if name not in (column, "prompt", "messages")}
    return check_prompts(rows[column][:]), others
