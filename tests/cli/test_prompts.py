"""Test prompts from every source, and the error for each one that cannot be read."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from hf_itp.cli.prompts import parse_prompts, read_prompts, with_system
from hf_itp.errors import ArgumentError, ItpWarning, LoadError

CHAT = [{"role": "user", "content": "how"}]
JSON_LINES = '{"prompt": "how do i bake"}\n\n{"messages": [{"role": "user", "content": "how"}]}\n'


def test_text_file_has_one_prompt_a_line_and_blank_lines_do_not_count(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text('how do i bake\n\n  what is it  \r\n{"prompt": 1}\n')
    with pytest.warns(ItpWarning, match=r"skipped: 1 of 4\. Write a prompt of several lines as JSON"):
        assert read_prompts([], file) == ["how do i bake", "  what is it  ", '{"prompt": 1}']


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl.gz"])
def test_json_lines_hold_prompts_or_messages(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(gzip.compress(JSON_LINES.encode()) if name.endswith(".gz") else JSON_LINES.encode())
    assert read_prompts([], file) == ["how do i bake", CHAT]


def test_message_keeps_the_fields_that_are_its_template_s_business():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "rest", "arguments": {}}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "how"}], "name": "ann"}
    chat = [parts, call, {"role": "tool", "name": "rest", "content": " it is "}]
    assert parse_prompts(json.dumps({"messages": chat}), "stdin", json_lines=True) == [chat]


def test_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfhow\n")
    assert read_prompts([], file) == ["how"]


def test_line_separator_within_a_prompt_does_not_cut_it():
    assert parse_prompts('{"prompt": "one\u2028two"}', "stdin", json_lines=True) == ["one\u2028two"]


@pytest.mark.parametrize("file", [None, Path("-")])
@pytest.mark.parametrize("text, prompts", [("how\nwhat\n", ["how", "what"]), (JSON_LINES, ["how do i bake", CHAT])])
def test_stdin_is_read_as_lines_of_text_or_of_json(monkeypatch, file, text, prompts):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert read_prompts([], file) == prompts


def test_arguments_leave_stdin_alone(monkeypatch):
    stdin = io.StringIO("from stdin")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert read_prompts(["one", "two"], None) == ["one", "two"]
    assert stdin.read() == "from stdin"


@pytest.mark.parametrize(
    "line, remedy",
    [
        ("{", r'Line 2 of stdin must be JSON, got .* Write \{"prompt": "\.\.\."\}'),
        ('"how"', "Line 2 of stdin must be an object"),
        ("[1]", "must be an object with either `prompt` or `messages`"),
        ('{"text": "how"}', "must be an object with either `prompt` or `messages`"),
        ('{"prompt": "how", "messages": []}', "with either `prompt` or `messages`"),
        ('{"prompt": 3}', "must hold text or a list of messages, got 3"),
        ('{"prompt": "  "}', "empty `prompt`"),
        ('{"prompt": null}', "must hold text or a list of messages, got null"),
        ('{"messages": "how"}', "must hold text or a list of messages"),
        ('{"messages": []}', "must hold text or a list of messages"),
        ('{"messages": ["how"]}', "must hold text or a list of messages"),
        ('{"messages": [{"role": "user"}]}', "must hold text or a list of messages"),
        ('{"messages": [{"role": "user", "content": null}]}', "must hold text or a list of messages"),
        ('{"messages": [{"role": "assistant", "content": "hi"}]}', "End it with the user's"),
    ],
)
def test_line_that_holds_no_prompt_is_named(line, remedy):
    with pytest.raises(ArgumentError, match=remedy):
        parse_prompts(f'{{"prompt": "fine"}}\n{line}', "stdin", json_lines=True)


@pytest.mark.parametrize(
    "name, content, remedy",
    [
        ("missing.txt", None, "No such file"),
        ("folder", "folder", "Is a directory.*Name a text file"),
        ("latin.txt", b"caf\xe9", "Name a text file in UTF-8"),
        ("not_packed.jsonl.gz", b'{"prompt": "how"}', "Not a gzipped file"),
        ("cut.jsonl.gz", gzip.compress(b'{"prompt": "how"}', mtime=0)[:-9], "Name a text file in UTF-8, or a .jsonl"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, remedy):
    file = tmp_path / name
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(LoadError, match=remedy) as error:
        read_prompts([], file)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "arguments, file, remedy",
    [
        (["how"], Path("prompts.txt"), "Leave one of them out"),
        (["how", " "], None, "Prompt 2 must hold text, got ' '"),
        ([], Path("-"), "must hold prompts, got none in -.*Write one on each line"),
        ([], None, "must hold prompts, got none in stdin.*Write one on each line"),
    ],
)
def test_prompts_from_two_places_or_none_are_refused(monkeypatch, arguments, file, remedy):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n \n"))
    with pytest.raises(ArgumentError, match=remedy):
        read_prompts(arguments, file)


def test_system_message_comes_first_and_the_given_chat_is_not_changed():
    [chat] = with_system([CHAT], "be kind")
    assert chat == [{"role": "system", "content": "be kind"}, *CHAT]
    assert len(CHAT) == 1


@pytest.mark.parametrize(
    ("prompt", "remedy"),
    [
        ("how", "Leave `--system` out"),
        ([{"role": "system", "content": "be brief"}, *CHAT], "remove that message"),
    ],
)
def test_system_message_the_prompt_cannot_have_is_refused(prompt, remedy):
    with pytest.raises(ArgumentError, match=remedy):
        with_system([prompt], "be kind")
