"""
Strategies by name: this package's own, those of other packages under the entry points `hf_itp.strategies`, and those
that a program registers while it runs.

The module of a strategy that is not registered so is imported when its name is used.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from threading import Lock
from typing import Any, TypeVar

from hf_itp.checks import must_be, nearest_name
from hf_itp.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from hf_itp.strategies.base import Strategy

ENTRY_POINT_GROUP = "hf_itp.strategies"

_MODULES = {
    "best_of_n": "hf_itp.strategies.best_of_n:BestOfN",
    "pessimism": "hf_itp.strategies.pessimism:Pessimism",
    "soft_best_of_n": "hf_itp.strategies.soft_best_of_n:SoftBestOfN",
    "top_quantile": "hf_itp.strategies.top_quantile:TopQuantile",
    "best_of_poisson": "hf_itp.strategies.best_of_poisson:BestOfPoisson",
    "worst_of_n": "hf_itp.strategies.worst_of_n:WorstOfN",
}
OURS = {name: EntryPoint(name, module, ENTRY_POINT_GROUP) for name, module in _MODULES.items()}
# Names that a strategy goes by elsewhere, for "did you mean".
_ALSO_CALLED = {"itp": "pessimism", "chi2": "pessimism"}
_RESERVED = ("auto", "none")

StrategyClass = TypeVar("StrategyClass", bound=type[Strategy])

_registered: dict[str, type[Strategy]] = {}
_registering = Lock()


def register(strategy_class: StrategyClass) -> StrategyClass:
    """
    Make a strategy available by its `name` in this process: to `generate`, [`get_strategy`] and the command line.

    For notebooks and scripts, as a decorator above `@dataclass`. A class of the same module and qualified name takes
    the place of the one before, so a cell can be run again. A package declares an entry point instead, which needs no
    import. Safe to use from several threads.

    Args:
        strategy_class (`type[Strategy]`): A subclass of [`Strategy`] with a `name` and `probabilities` of its own.

    Returns:
        `type[Strategy]`: The class, unchanged.

    Raises:
        `TypeError`: If it is not a subclass of [`Strategy`], or leaves one of its methods out.
        `ValueError`: If its name is missing, reserved or taken.

    Examples:

    ```python
    >>> from dataclasses import dataclass
    >>> import torch
    >>> from hf_itp import Strategy, get_strategy, register
    >>> @register
    ... @dataclass(frozen=True)
    ... class FirstDrawn(Strategy):
    ...     name = "first_drawn"
    ...     def probabilities(self, rewards):
    ...         law = torch.zeros_like(rewards)
    ...         law[..., 0] = 1
    ...         return law
    >>> get_strategy("first_drawn").select(torch.tensor([0.1, 0.9])).tolist()
    [0]

    ```
    """
    given: Any = strategy_class
    if not (isinstance(given, type) and issubclass(given, Strategy)):
        remedy = "Derive a class from it and register the class."
        raise ArgumentTypeError(must_be("strategy_class", "a subclass of hf_itp.Strategy", given, remedy))
    if inspect.isabstract(strategy_class):
        missing = ", ".join(sorted(strategy_class.__abstractmethods__))
        raise ArgumentTypeError(
            must_be("strategy_class", f"a class that defines {missing}", strategy_class, f"Define {missing}.")
        )
    name = getattr(strategy_class, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
        rule = f"an identifier other than {' and '.join(_RESERVED)}"
        raise ArgumentError(must_be(f"{strategy_class.__name__}.name", rule, name, "Set e.g. name = 'my_rule'."))
    with _registering:
        installed, known = _entry_points(tuple(sys.path)).get(name), _registered.get(name)
        owner = None
        if name in OURS:
            owner = "hf_itp"
        elif known is not None and _path(known) != _path(strategy_class):
            owner = _path(known)
        elif installed is not None and installed.value != _path(strategy_class):
            owner = _package(installed)
        if owner is not None:
            raise ArgumentError(
                f"The strategy name {name!r} of {_path(strategy_class)!r} is already taken by {owner!r}. Give the "
                "class another `name`."
            )
        _registered[name] = strategy_class
    return strategy_class


def list_strategies() -> list[str]:
    """
    Return the names [`get_strategy`] accepts: this package's own, then those of others, sorted.

    Examples:

    ```python
    >>> "pessimism" in list_strategies()
    True

    ```
    """
    return [*OURS, *sorted({**_installed(), **_registered})]


def get_strategy(name_or_object: str | Strategy, **strategy_fields: Any) -> Strategy:
    """
    Build the strategy of a name from its fields; return a strategy object unchanged.

    Args:
        name_or_object (`str` or [`Strategy`]): One of [`list_strategies`], or an object.
        strategy_fields: The strategy's own fields, such as `beta`. Not accepted beside an object, which has its own.

    Raises:
        `ValueError`: If the name or a field is unknown, a field is missing or breaks its rule, or two packages claim a
            name.
        `TypeError`: If `name_or_object` is neither a name nor a strategy object.
        `ImportError`: If the package that provides the strategy cannot be imported.

    Examples:

    ```python
    >>> get_strategy("pessimism", beta=0.05)
    Pessimism(beta=0.05, pool='shared', reward_bound=None, normalize='none')

    ```
    """
    if isinstance(name_or_object, Strategy):
        if strategy_fields:
            raise ArgumentError(
                f"`strategy` must be a name to take fields, got the object {name_or_object!r} and "
                f"{_quoted(strategy_fields)}. Set the fields where the object is created."
            )
        return name_or_object
    if not isinstance(name_or_object, str):
        raise ArgumentTypeError(
            must_be(
                "strategy",
                "a name or a Strategy object",
                name_or_object,
                f"Pass one of: {', '.join(list_strategies())}.",
            )
        )
    found = strategy_class(name_or_object)
    _check_fields(found, strategy_fields)
    return found(**strategy_fields)


def strategy_class(name: str) -> type[Strategy]:
    """
    Import and return the class registered under a name.

    Raises:
        `ValueError`: If the name is unknown, or two packages claim it.
        `ImportError`: If the package that provides the strategy cannot be imported.

    Examples:

    ```python
    >>> strategy_class("pessimism").field_names()
    ('beta', 'pool', 'reward_bound', 'normalize')

    ```
    """
    installed = _installed()
    if name in OURS:
        return OURS[name].load()
    if name in _registered:
        return _registered[name]
    if name in installed:
        return _load(installed[name])
    names = list_strategies()
    meant = _ALSO_CALLED.get(name.lower()) or nearest_name(name, names)
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise ArgumentError(
        f"Unknown strategy {name!r}.{hint} Available: {', '.join(names)}. Correct the name or install the package "
        "that provides it; `hf_itp.register` adds a class of your own."
    )


def renamed_fields(strategy_class: type[Strategy]) -> dict[str, str]:
    """Return the old names of a strategy's fields that were renamed, each with the new one."""
    return {old: field.name for field in fields(strategy_class) if (old := field.metadata.get("formerly"))}


def _installed() -> dict[str, EntryPoint]:
    """Return the entry points by name, after checking that none has the name of another class registered here."""
    found = _entry_points(tuple(sys.path))
    for name, known in list(_registered.items()):
        if name in found and found[name].value != _path(known):
            raise ArgumentError(
                f"The strategy name {name!r} of the package {_package(found[name])!r} is already taken by "
                f"{_path(known)!r}, registered by this program. Give that class another `name`."
            )
    return found


def _path(cls: type) -> str:
    """Return where a class is found, as an entry point writes it."""
    return f"{cls.__module__}:{cls.__qualname__}"


# Reading the metadata of every installed package takes milliseconds, too much for each call of `generate`. The path is
# the key, so that a folder added to it later is seen.
@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        known = found.get(entry_point.name)
        if entry_point.name in OURS or (known is not None and known.value != entry_point.value):
            owner = "hf_itp" if known is None else _package(known)
            raise ArgumentError(
                f"The strategy name {entry_point.name!r} of the package {_package(entry_point)!r} is already taken by "
                f"{owner!r}. Rename the entry point in group {ENTRY_POINT_GROUP!r}, or uninstall one of the packages."
            )
        found[entry_point.name] = entry_point
    return found


def _load(entry_point: EntryPoint) -> type[Strategy]:
    try:
        loaded = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"Strategy {entry_point.name!r} could not be imported from {entry_point.value!r} of the package "
            f"{_package(entry_point)!r}: {error}. Reinstall that package."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Strategy)):
        raise ArgumentTypeError(
            f"Entry point {entry_point.name!r} of the package {_package(entry_point)!r} must be a subclass of "
            f"hf_itp.Strategy, got {loaded!r}. Point it at the class."
        )
    name = getattr(loaded, "name", None)
    if name != entry_point.name:
        raise ArgumentError(
            f"Entry point {entry_point.name!r} of the package {_package(entry_point)!r} must have the name of its "
            f"strategy, got {name!r}, so a saved configuration would not find it. Give both the same name."
        )
    return loaded


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.module


def _check_fields(strategy_class: type[Strategy], given: dict[str, Any]) -> None:
    name, known, renamed = strategy_class.name, fields(strategy_class), renamed_fields(strategy_class)
    names = [field.name for field in known]
    listed = f"Its fields: {', '.join(names)}." if names else "It has no fields."
    for field_name, value in given.items():
        if field_name in renamed:
            new = renamed[field_name]
            raise ArgumentError(
                f"The field `{field_name}` of strategy {name!r} is now called `{new}`. Pass {new}={value!r:.80}."
            )
        if field_name not in names:
            meant = nearest_name(field_name, names)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise ArgumentError(f"Strategy {name!r} has no field `{field_name}`.{hint} {listed} Correct or remove it.")
    for field in known:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given:
            old = field.metadata.get("formerly")
            policys = f" `{old}`, its name of before, is the policy's." if old else ""
            raise ArgumentError(
                f"Strategy {name!r} needs `{field.name}`, but it was not given.{policys} {listed} Pass "
                f"{field.name}=..., or a strategy object that has it."
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
