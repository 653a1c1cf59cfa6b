"""
The arguments of a run, from words behind a command and a YAML file; knows which of them were given.

TRL's parser, but a name has to be whole: a run of hours does not start on the prefix of an option.
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
# Of the command itself, which takes them before the words come here.
_COMMAND = ("config", "dry-run", "resume", "all-options", "debug")
_LIST = "`hf-itp train --all-options` lists all."


class RunParser(TrlParser):
    """
    Args:
        solver (`str`): Whose arguments to expect beside [`RunArguments`].

    Raises:
        `ArgumentError`: If there is no such solver.
    """

    def __init__(self, solver: str):
        check_choice("solver", solver, tuple(SOLVERS))
        self.solver = solver
        kinds: Any = (RunArguments, SOLVERS[solver])
        super().__init__(kinds, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """What argparse cannot read, as an error of ours, without the usage of hundreds of options."""
        raise ArgumentError(f"The configuration does not hold: {message}. Correct or remove it. {_LIST}")

    def read(self, words: Sequence[str], config: dict[str, Any]) -> tuple[RunArguments, Any, dict[str, Any]]:
        """
        Args:
            words (`list[str]`): `--name value` or `--name=value`; these win over the file.
            config (`dict`): What the file holds.

        Returns:
            `tuple`: The run's arguments, the trainer's, and of all of them those that were given, by name.

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
            # A number goes the way of an option's word, so that 4.5 is refused where an integer is asked for.
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
                    f"{unknown[0]!r} stands behind no option. Say what it is, e.g. --train_file {unknown[0]}."
                )
            self._refuse(option.split("=", 1)[0], "an option")
        named = {self._option_string_actions[word.split("=", 1)[0]].dest for word in words if self._is_option(word)}
        named |= {name for name, value in config.items() if value is not None}
        try:
            run, args = self.parse_args_into_dataclasses(words, look_for_args_file=False)
        except ItpError:
            raise
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"The configuration does not hold: {error}") from error
        return run, args, {name: getattr(read, name) for name in named}

    def _is_option(self, word: str) -> bool:
        return word.split("=", 1)[0] in self._option_string_actions

    def _refuse(self, name: str, kind: str) -> NoReturn:
        plain = name.lstrip("-").replace("-", "_")
        for solver, arguments in SOLVERS.items():
            if plain in {field.name for field in dataclasses.fields(arguments)}:
                raise ArgumentError(
                    f"`{name}` belongs to solver={solver!r}, but `solver` is {self.solver!r}, which would not use it. "
                    "Leave it out, or choose the other solver."
                )
        names = [action.dest for action in self._actions if action.dest != "help"]
        known = {option.replace("-", "_"): option for option in (*names, *_COMMAND)}
        close = sorted((option for option in known if option.startswith(plain)), key=len) if plain else []
        close = close or difflib.get_close_matches(plain, list(known), n=1)
        dashes = "--" if name.startswith("-") else ""
        hint = f" Did you mean `{dashes}{known[close[0]]}`?" if close else ""
        raise ArgumentError(f"`{name}` is no name of {kind} of a run.{hint} Correct or remove it. {_LIST}")


def take_option(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value that the last `option` among the words has, and the words without it."""
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
        raise ArgumentError(f"`{option}` has to have a value, but stands last. Write {option} VALUE.")
    return value, rest


def read_config(file: str) -> dict[str, Any]:
    """
    What a YAML file holds. Of its key `env`, as in TRL, the entries become variables of the environment.

    Raises:
        `ArgumentError`: If there is no such file, it is not YAML or names something twice.
    """
    path = Path(file)
    if not path.is_file():
        raise ArgumentError(f"`--config` has to be a YAML file, but there is none at {path}. Check the path.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8-sig"), _EachKeyOnce)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArgumentError(f"`--config` {str(path)!r} could not be read: {error}. Correct the file.") from error
    if not isinstance(config, (dict, type(None))):
        raise ArgumentError(
            f"`--config` has to hold `name: value` lines, but {path} holds {config!r:.60}. Correct it."
        )
    config = config or {}
    environment = config.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ArgumentError(
            f"`env` in {path} has to hold `NAME: value` lines, but is {environment!r:.60}. Correct it."
        )
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return config


class _EachKeyOnce(yaml.SafeLoader):
    """YAML forbids two entries of one name; the library takes the last and says nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ArgumentError(f"`{twice}` is given twice in the file of `--config`. Remove one of them.")
        return super().construct_mapping(node, deep)
