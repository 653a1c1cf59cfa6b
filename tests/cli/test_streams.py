"""Test consoles that lack letters and input that is not UTF-8: nothing is lost, and what is unreadable is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_itp.cli import main
from hf_itp.cli.prompts import read_prompts
from hf_itp.errors import ArgumentError, LoadError
from tests.cli.test_app import MAIN

# Letters of three kinds: one byte in Latin encodings, one escape in JSON, two escapes.
PROMPT = "naïve 水 \N{BREAD}"


@pytest.fixture
def written(monkeypatch, policy, reward_model):
    """Return the exit code of `hf-itp` and the bytes it writes on a console with the given encoding."""

    def written(encoding: str, *arguments: object, errors: str = "strict", models: bool = True) -> tuple[int, bytes]:
        small = ("-m", policy, "-r", reward_model, "-n", 2, "--max-new-tokens", 4) if models else ()
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            patched.setattr(sys, "stdout", console)
            main([str(word) for word in (*arguments, *small)])
        assert console.errors == errors
        console.flush()
        return ended.value.code or 0, console.buffer.getvalue()

    return written


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_the_same_json_on_every_console(written, encoding):
    code, data = written(encoding, "generate", "--json", PROMPT, "how")
    assert code == 0
    first, second = (json.loads(line) for line in data.decode(encoding).splitlines())
    assert first["prompt"][0]["content"] == PROMPT and second["prompt"][0]["content"] == "how"
    assert ("水" in data.decode(encoding)) == (encoding == "utf-8")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"na\xefve \u6c34 \U0001f35e"), ("cp1252", r"naïve \u6c34 \U0001f35e")]
)
def test_text_is_written_as_the_console_can(written, encoding, shown):
    code, data = written(encoding, "generate", PROMPT, "how")
    assert code == 0
    text = data.decode(encoding)
    assert f"### {shown}  (reward" in text and "### how  (reward" in text


def test_wish_for_another_way_is_kept(written):
    code, data = written("ascii", "generate", PROMPT, "how", errors="replace")
    assert code == 0 and b"### na?ve ? ?  (reward" in data


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_tables_and_marks_come_on_every_console(written, encoding, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, data = written(encoding, "demo", "--output", tmp_path / "demo.png")
    text = data.decode(encoding)
    assert code == 0 and "\\u" not in text
    assert "* best_of_n returned (reward" in text or "* best_of_n, o pessimism returned (reward" in text
    assert "Mean reward returned: v plain sampling " in text
    code, data = written(encoding, "strategies", models=False)
    assert code == 0 and "top_quantile" in data.decode(encoding)


def test_program_that_is_started_on_such_a_console_ends_well(policy, reward_model):
    """A user meets such a console through `PYTHONIOENCODING` in a container."""
    command = [*MAIN, "generate", "-m", policy, "-r", reward_model, "-n", "2", "--max-new-tokens", "4", PROMPT, "how"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert rb"### na\xefve \u6c34 \U0001f35e  (reward" in ended.stdout and b"### how  (reward" in ended.stdout


def stdin_of(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_stdin_is_utf8_whatever_the_console_is(monkeypatch):
    stdin_of(monkeypatch, b"\xef\xbb\xbf" + f"{PROMPT}\nhow\n".encode())
    assert read_prompts([], None) == [PROMPT, "how"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_that_is_not_utf8_is_named_with_its_place(monkeypatch, tmp_path, mark):
    data = mark + b"how\ncaf\xe9 latte\n"
    place = rf"must be UTF-8, got byte 0xe9 at offset {len(mark) + 7}, in line 2"
    stdin_of(monkeypatch, data)
    with pytest.raises(LoadError, match=f"Stdin {place}"):
        read_prompts([], Path("-"))
    (tmp_path / "latin.txt").write_bytes(data)
    with pytest.raises(LoadError, match=rf"latin.txt' {place}"):
        read_prompts([], tmp_path / "latin.txt")


def test_arguments_are_utf8_whatever_the_locale_says():
    """The interpreter itself shows how Python passes UTF-8 arguments on in an ASCII locale."""
    code = "from hf_itp.cli.prompts import read_prompts; import sys; print(ascii(read_prompts(sys.argv[1:], None)))"
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code, PROMPT], capture_output=True, text=True, env=os.environ | ascii_locale, check=True
    )
    assert ended.stdout == f"{[PROMPT]!a}\n"


def test_half_a_character_is_refused_with_its_place(monkeypatch):
    with pytest.raises(ArgumentError, match=r"Prompt 2 must hold whole characters, got '.udce9'"):
        read_prompts(["how", os.fsdecode(b"caf\xe9")], None)
    stdin_of(monkeypatch, b'{"prompt": "how"}\n{"prompt": "bread \\ud83c"}\n')
    with pytest.raises(ArgumentError, match=r"Line 2 of stdin must hold whole characters, got '.ud83c'"):
        read_prompts([], None)
