"""Test the shape of the package: imports point inward, files are small, `import hf_itp` needs no optional package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_itp"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the inside out: a file imports from its own ring and from those before it.
RINGS = (
    ("_version", "errors", "checks", "arrays"),
    ("functional", "models", "embedded"),
    ("prompts", "sampling", "rewards", "policies", "pools", "calibration", "distributed"),
    ("strategies", "evaluation"),
    ("generation", "hub", "training", "cli"),
)


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path, nodes: Iterator[ast.AST] | list[ast.stmt] | None = None) -> set[str]:
    """
    Return the full names of the modules a file imports anywhere.

    For `from a import b` that is `a.b` if it is a module of the package, and `a` otherwise.
    """
    names = set()
    package = file.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(file.read_text())) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*package[: len(package) - node.level + 1], node.module or ""] if node.level else [node.module]
            )
            base = base.rstrip(".")
            for alias in node.names:
                path = PACKAGE.parent.joinpath(*base.split("."), alias.name)
                names.add(f"{base}.{alias.name}" if path.is_dir() or path.with_suffix(".py").is_file() else base)
    return names


def imported_at_once(file: Path) -> set[str]:
    """Return what importing the file imports: the imports outside of functions."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            for block in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)

    return imported(file, list(statements(ast.parse(file.read_text()).body)))


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def files_in(*folders: str) -> list[Path]:
    return [file for file in FILES if file.relative_to(PACKAGE).parts[0].removesuffix(".py") in folders]


def as_ids(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", files_in("functional"), ids=as_ids)
def test_formulas_import_torch_and_errors_only(file):
    allowed = (
        "torch",
        "hf_itp.errors",
        "hf_itp.checks",
        "hf_itp.arrays",
        "hf_itp.functional",
        *sys.stdlib_module_names,
    )
    assert {name for name in imported(file) if not within(name, *allowed)} == set()


@pytest.mark.parametrize("number", range(len(RINGS)))
def test_imports_point_inward(number):
    inner = [f"hf_itp.{name}" for ring in RINGS[: number + 1] for name in ring]
    edge = number == len(RINGS) - 1  # the outermost ring may use the package like any user
    outward = {
        f"{as_ids(file)} -> {name}"
        for file in files_in(*RINGS[number])
        for name in imported(file)
        if within(name, "hf_itp") and not within(name, *inner) and not (edge and name == "hf_itp")
    }
    assert outward == set()


def test_every_file_is_in_a_ring():
    names = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert names - {"__init__"} == {name for ring in RINGS for name in ring}


@pytest.mark.parametrize("folder", ["hf_itp", "benchmarks", "tests"])
def test_no_file_imports_itself_in_a_circle(folder):
    """Imports inside functions count too."""
    files = {module_name(file): file for file in (PACKAGE.parent / folder).rglob("*.py")}
    imports = {name: imported(file) & files.keys() - {name} for name, file in files.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_root_holds_few_files_and_folders_have_a_first_line():
    assert len(list(PACKAGE.glob("*.py"))) <= 7
    assert {
        as_ids(file) for file in FILES if file.name == "__init__.py" and not file.read_text().startswith('"""')
    } == set()


@pytest.mark.parametrize("file", files_in("embedded"), ids=as_ids)
def test_embedded_default_knows_nothing_of_what_it_is_used_for(file):
    ours = {name for name in imported(file) if within(name, "hf_itp")}
    assert {name for name in ours if not within(name, "hf_itp.errors", "hf_itp.embedded")} == set()


@pytest.mark.parametrize("file", [file for file in files_in("strategies") if file.name != "__init__.py"], ids=as_ids)
def test_strategy_knows_formulas_and_no_other_strategy(file):
    allowed = ("hf_itp.functional", "hf_itp.errors", "hf_itp.checks", "hf_itp.arrays", "hf_itp.strategies.base")
    ours = {name for name in imported(file) if within(name, "hf_itp")}
    assert {name for name in ours if not within(name, *allowed)} == set()


@pytest.mark.parametrize("file", [file for file in FILES if file not in files_in("cli")], ids=as_ids)
def test_nothing_imports_the_command_line(file):
    assert {name for name in imported(file) if within(name, "hf_itp.cli", "typer", "click")} == set()


@pytest.mark.parametrize("file", [file for file in FILES if file not in files_in("training")], ids=as_ids)
def test_trl_is_imported_only_when_used(file):
    assert {name for name in imported_at_once(file) if within(name, "trl")} == set()


@pytest.mark.parametrize("file", FILES, ids=as_ids)
def test_file_is_short_named_by_its_noun_and_says_what_it_is(file):
    source = file.read_text()
    assert len(source.splitlines()) <= 400, "split the file by noun"
    assert file.name != "utils.py", "a function lives with its noun"
    if not source.strip():
        assert file.name == "__init__.py"
    else:
        assert ast.get_docstring(ast.parse(source)), "say in the module's docstring what it holds"


def test_importing_the_package_leaves_optional_packages_alone():
    code = "import sys, hf_itp; print(sorted({'trl', 'matplotlib', 'typer', 'gguf', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_loads_no_model_library():
    """Users ask for help before they use the command line, so it must come at once."""
    code = (
        "import sys; from typer.testing import CliRunner; from hf_itp.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
