"""Test strategies by name: what is found, what is refused, and packages that bring their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.strategies import BestOfN, Pessimism, get_strategy, list_strategies
from hf_itp.strategies.registry import OURS, strategy_class

ROOT = Path(__file__).parent.parent.parent

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from hf_itp import Strategy
from hf_itp.functional import best_of_n_law

@dataclass(frozen=True)
class Shy(Strategy):
    name: ClassVar[str] = "shy"
    level: float = 0.5

    def probabilities(self, rewards):
        return best_of_n_law(-(rewards - self.level).abs())

class NoStrategy:
    pass
"""


def test_our_own_are_listed_first_and_load_by_their_names():
    assert list_strategies()[: len(OURS)] == list(OURS) and {"best_of_n", "pessimism"} <= set(OURS)
    assert [strategy_class(name).name for name in OURS] == list(OURS)


def test_name_and_fields_make_the_strategy():
    assert get_strategy("best_of_n") == BestOfN()
    assert get_strategy("pessimism", beta=0.5, pool="fresh") == Pessimism(beta=0.5, pool="fresh")
    assert strategy_class("pessimism") is Pessimism


def test_object_is_returned_as_it_is():
    strategy = Pessimism(beta=0.5)
    assert get_strategy(strategy) is strategy


@pytest.mark.parametrize(
    ("strategy", "fields", "error", "remedy"),
    [
        (
            "pesimism",
            {},
            ArgumentError,
            r"Unknown strategy 'pesimism'\. Did you mean 'pessimism'\? Available: best_of_n, ",
        ),
        ("Best-of-N", {}, ArgumentError, r"Did you mean 'best_of_n'\?.*Correct the name or install the package"),
        ("", {}, ArgumentError, "Available: best_of_n, .*Correct the name or install the package"),
        ("auto", {}, ArgumentError, "Correct the name or install the package"),
        (None, {}, ArgumentTypeError, "got None. Pass one of: best_of_n"),
        (Pessimism, {}, ArgumentTypeError, "Pass one of: best_of_n"),
        ("pessimism", {"betta": 1}, ArgumentError, r"no field `betta`\. Did you mean 'beta'\? Its fields: beta, pool"),
        ("best_of_n", {"beta": 1}, ArgumentError, r"no field `beta`\. It has no fields\. Correct or remove it"),
        ("top_quantile", {}, ArgumentError, r"needs `multiplier`.*Pass multiplier=\.\.\., or a strategy object"),
        ("soft_best_of_n", {}, ArgumentError, "needs `temperature`"),
        ("pessimism", {"beta": -1}, ArgumentError, "Choose a beta on the scale of the rewards"),
        (
            BestOfN(),
            {"beta": 1, "k": 2},
            ArgumentError,
            r"`beta`, `k`\. Set the fields where",
        ),
    ],
)
def test_what_cannot_be_found_or_made_is_refused_with_a_remedy(strategy, fields, error, remedy):
    with pytest.raises(error, match=remedy):
        get_strategy(strategy, **fields)


def installed(folder: Path, package: str, entry_points: str, module: str | None = MODULE) -> None:
    """Install a package as pip does: a module and its metadata."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[hf_itp.strategies]\n{entry_points}\n")
    if module is not None:
        (folder / f"{package}.py").write_text(module)


def run_beside(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    preamble = f"import sys; sys.path.append({str(folder)!r})\n"
    preamble += "from hf_itp import get_strategy, list_strategies\n"
    return subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, cwd=ROOT)


def test_strategy_of_an_installed_package_is_found_and_imported_only_when_asked_for(tmp_path):
    installed(tmp_path, "shy_package", "shy = shy_package:Shy")
    code = (
        "assert list_strategies()[-1] == 'shy' and 'shy_package' not in sys.modules\n"
        "get_strategy('pessimism'); assert 'shy_package' not in sys.modules\n"
        "import torch; print(get_strategy('shy', level=2.0).select(torch.tensor([0.0, 2.1, 9.0])).item())"
    )
    result = run_beside(tmp_path, code)
    assert result.stdout.strip() == "1", result.stderr


@pytest.mark.parametrize("call", ["get_strategy('best_of_n')", "list_strategies()"])
def test_package_that_takes_one_of_our_names_is_refused(tmp_path, call):
    installed(tmp_path, "rival", "best_of_n = rival:Shy")
    result = run_beside(tmp_path, call)
    assert "'best_of_n' of the package 'rival' is already taken by 'hf_itp'. Rename the entry point" in result.stderr


def test_two_packages_with_one_name_are_refused(tmp_path):
    installed(tmp_path, "first", "shy = first:Shy")
    installed(tmp_path, "second", "shy = second:Shy")
    result = run_beside(tmp_path, "get_strategy('shy')")
    assert "is already taken by" in result.stderr and "uninstall one of the packages" in result.stderr


@pytest.mark.parametrize(
    ("entry_point", "module", "remedy"),
    [
        ("shy = broken:Shy", None, "MissingDependencyError: Strategy 'shy' could not be imported"),
        ("shy = broken:Absent", MODULE, "Reinstall that package"),
        ("shy = broken:NoStrategy", MODULE, "Point it at the class"),
        ("timid = broken:Shy", MODULE, "Give both the same name"),
    ],
)
def test_package_that_does_not_deliver_is_named(tmp_path, entry_point, module, remedy):
    installed(tmp_path, "broken", entry_point, module)
    result = run_beside(tmp_path, f"get_strategy({entry_point.split()[0]!r})")
    assert remedy in result.stderr and "'broken'" in result.stderr


def test_package_installed_into_a_new_path_is_seen_by_a_running_process(tmp_path):
    installed(tmp_path, "later", "shy = later:Shy")
    code = (
        f"sys.path.remove({str(tmp_path)!r}); before = list_strategies()\n"
        f"sys.path.append({str(tmp_path)!r}); print(set(list_strategies()) - set(before))"
    )
    result = run_beside(tmp_path, code)
    assert result.stdout.strip() == "{'shy'}", result.stderr
