"""Test the program around its commands: help, version, exit codes, and errors and warnings as the user sees them."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest

from hf_itp import __version__
from hf_itp.cli import main
from hf_itp.errors import ArgumentError

pytestmark = pytest.mark.oldest

MAIN = [sys.executable, "-c", "from hf_itp.cli import main; main()"]


def unwrapped(text: str) -> str:
    """Return the text as written, before it was wrapped and framed for the terminal."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_version_is_the_package_s(run):
    assert run("--version").out == f"hf-itp {__version__}\n"


@pytest.mark.parametrize("command", [(), ("demo",), ("generate",), ("strategies",)])
def test_help_says_what_the_command_does(run, command):
    shown = run(*command, "--help")
    assert shown.code == 0
    assert f"Usage: hf-itp{''.join(' ' + word for word in command)} " in unwrapped(shown.out)
    if command in (("demo",), ("generate",)):
        assert "Examples" in shown.out and f"hf-itp {command[0]} " in shown.out


def test_help_names_every_command_and_the_exit_codes(run):
    shown = unwrapped(run("--help").out)
    assert all(f" {command} " in shown for command in ("demo", "generate", "strategies"))
    assert "130 interrupted" in shown


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["frobnicate"], "No such command"),
        (["generate", "--frobnicate"], "No such option"),
        (["generate", "--num-candidates", "0", "how"], "'--num-candidates'"),
        (["generate", "--num-candidates", "many", "how"], "'--num-candidates'"),
        (["generate", "--max-new-tokens", "0", "how"], "'--max-new-tokens'"),
        (["generate", "--seed", "-1", "how"], "'--seed'"),
        (["generate", "--batch-size", "0", "how"], "'--batch-size'"),
        (["generate", "--dtype", "int8", "how"], "'--dtype'"),
        (["generate", "--set", "beta", "how"], "must have the form name=value, got 'beta'"),
        (["generate", "--set", "=1", "how"], "must have the form name=value, got '=1'"),
        (["generate", "--set", "beta=1", "--beta", "2", "how"], "must give beta once, got it twice"),
        (["generate", "-n", "2", "-k", "3", "how"], "must be at most --num-candidates (2), got 3"),
        (["generate", "--all-candidates", "how"], "Add --json"),
        (["demo", "--beta", "strong"], "'--beta'"),
        (["demo", "extra"], "unexpected extra argument"),
    ],
)
def test_command_that_does_not_parse_ends_with_2(run, arguments, told):
    ended = run(*arguments)
    assert ended.code == 2
    assert told.lower() in unwrapped(ended.err).lower()
    assert ended.out == ""


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        (["how", ""], "Prompt 2 must hold text, got ''. Leave it out."),
        ([], "Write one on each line."),
        (["-f", "missing.txt"], "Name a text file in UTF-8"),
        (["-f", "x.txt", "how"], "Leave one of them out."),
        (["-s", "pesimism", "how"], "Did you mean 'pessimism'?"),
        (["-s", "best_of_n", "--beta", "1", "how"], "Correct or remove it."),
        (["--set", "betta=1", "how"], "Did you mean 'beta'?"),
        (["--set", "beta=strong", "how"], "Choose a beta on the scale of the rewards"),
        (["--set", "pool=old", "how"], "'fresh'"),
        (["--beta", "0", "how"], "Choose a beta on the scale of the rewards"),
        (["--beta", "nan", "how"], "Choose a beta on the scale of the rewards"),
        (["-s", "soft_best_of_n", "how"], "Pass temperature=..."),
        (["-m", "no/such/model", "how"], "`--model` 'no/such/model' could not be loaded"),
        (["-m", "nobody/nothing", "how"], "you are online and have access to it."),
        (
            ["--device", "toaster", "how"],
            "`--device` must name a device of this machine, got 'toaster'. Pass e.g. --device cpu",
        ),
    ],
)
def test_error_of_ours_ends_with_1_and_its_remedy(run, arguments, remedy):
    ended = run("generate", *arguments)
    assert ended.code == 1
    assert ended.err.startswith("Error: ")
    assert remedy in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_debug_shows_the_traceback():
    with pytest.raises(ArgumentError, match="Unknown strategy 'pesimism'"):
        main(["generate", "-s", "pesimism", "how", "--debug"])


def test_error_of_another_library_says_its_kind_and_how_to_see_more(run, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("the [disk] is full")

    monkeypatch.setattr("hf_itp.cli.generate.read_prompts", broken)
    ended = run("generate", "how")
    assert ended.code == 1
    assert ended.err == "Error: RuntimeError: the [disk] is full\nRun again with --debug to see where.\n"


def test_warning_of_ours_is_a_line_of_its_own(generate):
    ended = generate("--quiet", "--beta", "1e-9", "how do i bake bread", "what is it")
    assert ended.code == 0
    [line] = ended.err.splitlines()
    assert line.startswith("Warning: `beta` (1e-09) is so small") and "Choose a beta between" in line


def test_warning_of_another_library_stays_what_it_was(run, monkeypatch):
    def to_json(rows, **options):
        warnings.warn("old", FutureWarning, stacklevel=1)
        return "[]"

    monkeypatch.setattr("hf_itp.cli.strategies.to_json", to_json)
    with pytest.warns(FutureWarning, match="old"):
        assert run("strategies", "--json").err == ""


@pytest.mark.slow
def test_results_come_one_by_one_and_interrupting_loses_none(policy, reward_model):
    # More than any machine can do before it is interrupted.
    prompts = "".join(f"how do i bake bread {'and bread ' * (index % 60)}\n" for index in range(600))
    command = [*MAIN, "generate", "--json", "-m", policy, "-r", reward_model, "-n", "32", "--max-new-tokens", "40"]
    pipe = subprocess.PIPE

    def listen() -> None:
        # Background jobs of a shell ignore interrupts, and children inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=listen) as process:
        process.stdin.write(prompts)
        process.stdin.close()
        first = process.stdout.readline()
        assert process.poll() is None
        while process.poll() is None:
            # Interrupt again if needed: Python drops an interrupt that arrives in a finalizer.
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert first.startswith('{"prompt"') and len(rest.splitlines()) < 599
    assert "Traceback" not in errors


@pytest.mark.slow
def test_reader_that_stops_reading_is_no_error(policy, reward_model):
    command = [*MAIN, "generate", "-m", policy, "-r", reward_model, "-n", "2", "--max-new-tokens", "4", *["how"] * 40]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "Error" not in errors and "Traceback" not in errors


def test_terminal_on_stdin_is_not_waited_for():
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run([*MAIN, "generate"], stdin=theirs, capture_output=True, text=True, timeout=500)
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 1
    assert "Give some as arguments, in `--file`, or on stdin." in ended.stderr
