"""Run the program in this process, on tiny models saved once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_itp.cli import main
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer


@dataclass(frozen=True)
class Run:
    """Exit code and output of one run of the program."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    tiny_classifier("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`run("generate", ..., stdin="text")`: the program in this process, with text on stdin, or nothing."""

    def run(*arguments: object, stdin: str = "") -> Run:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Run(ended.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def generate(run: Callable[..., Run], policy: Path, reward_model: Path) -> Callable[..., Run]:
    """`hf-itp generate` on the tiny models, six tokens and four candidates at most; later options win."""
    small = ("--num-candidates", 4, "--max-new-tokens", 6)
    return lambda *arguments, **more: run("generate", "-m", policy, "-r", reward_model, *small, *arguments, **more)
