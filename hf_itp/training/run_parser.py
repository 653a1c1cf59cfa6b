"""
Arguments of a run, from the command line and a YAML file, and which of them were given.

TRL's parser without abbreviations: a prefix of an option must not start a run of hours.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from hf_itp.checks import check_choice
from hf_itp.errors import ArgumentError, ItpError
from hf_itp.training.arguments import CTRLArguments, QuantileRegressionArguments
from hf_itp.training.run_arguments import RunArguments

SOLVERS: dict[str, Any] = {"rl": CTRLArguments, "quantile_regression": QuantileRegressionArguments}
# Options that the command takes before this parser sees the words.
_COMMAND = ("config", "dry-run", "resume", "all-options", "debug")
_LIST = "`hf-itp train --all-options` lists all."


class RunParser(TrlParser):
    """
    TRL's parser for [`RunArguments`] and the arguments of a solver.

    Args:
        solver (`str`): The solver.

    Raises:
        `ArgumentError`: If there is no such solver.
    """

    def __init__(self, solver: str):
        check_choice("solver", solver, tuple(SOLVERS))
        self.solver = solver
        kinds: Any = (RunArguments, SOLVERS[solver])
        super().__init__(kinds, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise an error of ours for what argparse cannot read, without the usage of hundreds of options."""
        raise ArgumentError(f"The configuration must parse, got: {message}. Correct or remove it. {_LIST}")

    def read(self, words: Sequence[str], config: dict[str, Any]) -> tuple[RunArguments, Any, dict[str, Any]]:
        """
        Read the arguments.

        Args:
            words (`list[str]`): `--name value` or `--name=value`; these override the file.
            config (`dict`): The content of the file.

        Returns:
            `tuple`: The run's arguments, the trainer's, and those of both that were given, by name.

        Raises:
            `ArgumentError`: If a name is unknown or a value does not parse.
        """
        words = list(words)
        actions = {action.dest: action for action in self._actions}
        for name in config:
            if name not in actions:
                self._refuse(str(name), "a key of the file")
        numbers = (int, float)
        self.set_defaults_with_config(
            # Parse a number as an option's word, so that 4.5 is refused for an integer.
            **{
                name: str(value) if isinstance(value, numbers) and actions[name].type in numbers else value
                for name, value in config.items()
            }
        )
        read, unknown = self.parse_known_args(words)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), None)
            if option is None:
                raise ArgumentError(
                    f"Every value must follow an option, got {unknown[0]!r}. Name it, e.g. --train_file {unknown[0]}."
                )
            self._refuse(option.split("=", 1)[0], "an option")
        named = {self._option_string_actions[word.split("=", 1)[0]].dest for word in words if self._is_option(word)}
        named |= {name for name, value in config.items() if value is not None}
        try:
            run, args = self.parse_args_into_dataclasses(words, look_for_args_file=False)
        except ItpError:
            raise
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"The configuration must be valid, got: {error}") from error
        return run, args, {name: getattr(read, name) for name in named}

    def _is_option(self, word: str) -> bool:
        return word.split("=", 1)[0] in self._option_string_actions

    def _refuse(self, name: str, kind: str) -> NoReturn:
        plain = name.lstrip("-").replace("-", "_")
        for solver, arguments in SOLVERS.items():
            if plain in {field.name for field in dataclasses.fields(arguments)}:
                raise ArgumentError(
                    f"`{name}` must come with solver={solver!r}, got solver={self.solver!r}, which would not use it. "
                    "Leave it out, or choose the other solver."
                )
        names = [action.dest for action in self._actions if action.dest != "help"]
        known = {option.replace("-", "_"): option for option in (*names, *_COMMAND)}
        close = sorted((option for option in known if option.startswith(plain)), key=len) if plain else []
        close = close or difflib.get_close_matches(plain, list(known), n=1)
        dashes = "--" if name.startswith("-") else ""
        hint = f" Did you mean `{dashes}{known[close[0]]}`?" if close else ""
        raise ArgumentError(f"`{name}` must be {kind} of a run, got no such name.{hint} Correct it. {_LIST}")


def take_option(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Return the value of the last `option` among the words, and the words without it."""
    value, rest, waiting = None, [], False
    for word in words:
        name, equals, behind = word.partition("=")
        if waiting:
            value, waiting = word, False
        elif name == option and equals:
            value = behind
        elif name == option:
            waiting = True
        else:
            rest.append(word)
    if waiting:
        raise ArgumentError(f"`{option}` must have a value, got none. Write {option} VALUE.")
    return value, rest


def read_config(file: str) -> dict[str, Any]:
    """
    Read a YAML file. As in TRL, the entries of its key `env` become environment variables.

    Raises:
        `ArgumentError`: If there is no such file, it is not YAML, or a key is given twice.
    """
    path = Path(file)
    if not path.is_file():
        raise ArgumentError(f"`--config` must be a YAML file, got none at {path}. Check the path.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8-sig"), _EachKeyOnce)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArgumentError(f"`--config` must be readable, got {str(path)!r}: {error}. Correct the file.") from error
    if not isinstance(config, (dict, type(None))):
        raise ArgumentError(f"`--config` must hold `name: value` lines, got {config!r:.60} in {path}. Correct it.")
    config = config or {}
    environment = config.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ArgumentError(f"`env` must hold `NAME: value` lines, got {environment!r:.60} in {path}. Correct it.")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return config


class _EachKeyOnce(yaml.SafeLoader):
    """Refuse two entries of one name, which YAML forbids and the library silently resolves to the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ArgumentError(f"`{twice}` must be given once in the file of `--config`, got two. Remove one.")
        return super().construct_mapping(node, deep)
