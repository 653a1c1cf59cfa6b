"""Test reward functions by the name of their file or module, as the command line takes them."""

from __future__ import annotations

import sys

import pytest

from hf_itp.errors import ArgumentError, LoadError
from hf_itp.rewards.from_code import load_code, names_code, with_code_loaded

VERIFIER = """
from dataclasses import dataclass
from neighbour import POINTS

def check(prompts, completions, **kwargs):
    return [POINTS] * len(completions)

@dataclass
class Judge:
    points: float = 1.0
    def __call__(self, prompts, completions, **kwargs):
        return [self.points] * len(completions)

class held:
    judge = Judge(2.0)

_private = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "verify.py").write_text(VERIFIER)
    (tmp_path / "neighbour.py").write_text("POINTS = 7.0")
    (tmp_path / "broken.py").write_text("import verify_nothing")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "module.py").write_text("def check(prompts, completions):\n    return [5.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if name.startswith(("hf_itp_code.", "package", "neighbour", "broken")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "rewards"),
    [("verify.py:check", [7.0]), ("./verify.py:check", [7.0]), ("verify.py:held.judge", [2.0]),
     ("package.module:check", [5.0])],
)  # fmt: skip
def test_function_of_a_file_or_module_is_loaded(folder, spec, rewards):
    assert names_code(spec)
    assert load_code(spec)(prompts=["how"], completions=["so"]) == rewards


def test_absolute_path_from_another_folder(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_code(f"{folder}/verify.py:check")(["how"], ["so"]) == [7.0]


def test_one_file_is_run_once(folder):
    assert load_code("verify.py:held.judge") is load_code(f"{folder}/verify.py:held.judge")


def test_models_stay_names(folder):
    loaded = with_code_loaded(["org/model", "verify.py:check", "embedded"])
    assert loaded[::2] == ["org/model", "embedded"] and callable(loaded[1])


@pytest.mark.parametrize(
    "name", ["org/model", "embedded", r"C:\models\small", "/models/x.y", "C:/models", "a.b", "org/a.pyc"]
)
def test_names_of_models_are_not_code(name):
    assert not names_code(name)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("verfy.py:check", LoadError, r"must name a file, got none at verfy.py. Did you mean `verify.py`\?.*Name a"),
        ("nowhere/verify.py:check", LoadError, "got none at nowhere/verify.py"),
        ("verify.py:chek", ArgumentError, r"something in verify.py, got 'chek'. Did you mean `check`\?"),
        ("verify.py:held.juge", ArgumentError, r"got 'held.juge'. Did you mean `judge`\?"),
        ("verify.py", ArgumentError, "got only the file. The file has check, Judge, held."),
        ("missing.py", ArgumentError, "got only the file. Name a function"),
        ("broken.py:check", LoadError, r"broken.py must run to the end, got ModuleNotFoundError: .*verify_nothing"),
        ("package.modul:check", LoadError, "got 'package.modul', and there is no 'package.modul'"),
        ("verfy:check", LoadError, r"got 'verfy', and there is no 'verfy'. Did you mean `verify`\?"),
        ("broken:check", LoadError, "broken must run to the end"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(folder, spec, error, message):
    assert names_code(spec)
    with pytest.raises(error, match=message):
        load_code(spec)
