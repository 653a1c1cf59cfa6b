"""
Strategies by name: this package's own, and those of other packages under the entry points `hf_itp.strategies`.

A strategy's module is imported when its name is used.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hf_itp.checks import must_be
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


def list_strategies() -> list[str]:
    """
    Return the names [`get_strategy`] accepts: this package's own, then those of installed packages, sorted.

    Examples:

    ```python
    >>> "pessimism" in list_strategies()
    True

    ```
    """
    return [*OURS, *sorted(_entry_points(tuple(sys.path)))]


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
    _check_fields(name_or_object, fields(found), strategy_fields)
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
    installed = _entry_points(tuple(sys.path))
    if name in OURS:
        return OURS[name].load()
    if name in installed:
        return _load(installed[name])
    names = [*OURS, *sorted(installed)]
    raise ArgumentError(
        f"Unknown strategy {name!r}.{_did_you_mean(name, names)} Available: {', '.join(names)}. Correct the name or "
        "install the package that provides it."
    )


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


def _check_fields(name: str, known: Iterable[Field], given: dict[str, Any]) -> None:
    names = [field.name for field in known]
    listed = f"Its fields: {', '.join(names)}." if names else "It has no fields."
    for field_name in given:
        if field_name not in names:
            raise ArgumentError(
                f"Strategy {name!r} has no field `{field_name}`.{_did_you_mean(field_name, names)} {listed} Correct "
                "or remove it."
            )
    for field in known:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given:
            raise ArgumentError(
                f"Strategy {name!r} needs `{field.name}`, but it was not given. {listed} Pass {field.name}=..., or a "
                "strategy object that has it."
            )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
