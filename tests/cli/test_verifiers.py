"""Test verifiers on the command line: functions of the user's own, which get the columns of the prompts' file."""

from __future__ import annotations

import json
import sys

import pytest

from hf_itp import RewardCalibrator
from hf_itp.pools.file import read_pool

VERIFIER = """
import asyncio

def check(prompts, completions, answer, log_metric, log_extra, level=None, **kwargs):
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    log_metric("share_empty", sum(not text for text in texts) / len(texts))
    log_extra("length", [len(text) for text in texts])
    shares = [len(set(text.split()) & set(own.split())) + len(text) / 1024 for text, own in zip(texts, answer)]
    return [None if len(text) % 3 == 0 else share for text, share in zip(texts, shares)]

async def judge(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [1000.0 * len(completion[0]["content"]) for completion in completions]

def never(prompts, completions, **kwargs):
    return [None] * len(completions)

def scheduled(prompts, completions, trainer_state, **kwargs):
    return [float(len(completion)) for completion in completions]
"""
ROWS = [
    {"prompt": "how do i bake bread", "answer": "bread flour salt", "level": 1, "completion": "not for rewards"},
    {"prompt": "what is salt for", "answer": "salt water", "level": 2},
]


def value(text, answer):
    if len(text) % 3 == 0:
        return None
    return len(set(text.split()) & set(answer.split())) + len(text) / 1024


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "verify.py").write_text(VERIFIER)
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def generated(run, policy, folder):
    small = ("--num-candidates", 6, "--max-new-tokens", 6, "--json", "--all-candidates", "-s", "best_of_n")
    return lambda *arguments, **more: run("generate", "-m", policy, *small, *arguments, **more)


@pytest.mark.parametrize("source", ["file", "stdin", "batch"])
def test_function_of_a_file_gets_the_columns(generated, folder, source):
    text = (folder / "sums.jsonl").read_text()
    given = {"file": ("-f", "sums.jsonl"), "stdin": (), "batch": ("-f", "sums.jsonl", "--batch-size", 12)}[source]
    ended = generated("-r", "verify.py:check", *given, stdin=text if source == "stdin" else "")
    assert ended.code == 0, ended.err
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert len(records) == 2
    for record, row in zip(records, ROWS, strict=True):
        candidates = record["candidates"]
        expected = [value(candidate["response"], row["answer"]) for candidate in candidates]
        assert [candidate["reward"] for candidate in candidates] == pytest.approx(expected)
        assert record["diagnostics"]["no_reward"] == expected.count(None)
        assert record["rewards"] == pytest.approx([max(one for one in expected if one is not None)])
        log = record["diagnostics"]["reward_log"]
        assert log["extra"]["length"] == [len(candidate["response"]) for candidate in candidates]
        assert 0 <= log["metrics"]["share_empty"] <= 1
    assert sum(record["diagnostics"]["no_reward"] for record in records) > 0


def test_functions_and_models_make_an_ensemble(generated, reward_model):
    both = ("-r", "verify.py:judge", "-r", reward_model)
    records = {}
    for name, given in {"both": both, "judge": both[:2], "model": both[2:]}.items():
        ended = generated(*given, "how do i bake bread")
        assert ended.code == 0, ended.err
        records[name] = [candidate["reward"] for candidate in json.loads(ended.out)["candidates"]]
    expected = [(one + other) / 2 for one, other in zip(records["judge"], records["model"], strict=True)]
    assert records["both"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("verfy.py:check", "Did you mean `verify.py`?"),
        ("verify.py:chek", "Did you mean `check`?"),
        ("verify.py", "The file has check, judge, never, scheduled."),
        ("verify.py:scheduled", "needs `trainer_state`"),
        ("verify.py:check", "needs `answer`"),
        ("verify.py:never", "Prompt 0 must have at least 1 candidates with a reward"),
    ],
)
def test_what_cannot_score_is_refused_by_name(generated, spec, message):
    ended = generated("-r", spec, "how do i bake bread")
    assert ended.code == 1 and message in ended.err and "Traceback" not in ended.err


def test_calibrate_passes_columns_and_counts_what_is_left_out(run, policy, folder):
    ended = run("calibrate", "out", "-f", "sums.jsonl", "-m", policy, "-r", "verify.py:check", "-k", 24,
                "--max-new-tokens", 6)  # fmt: skip
    assert ended.code == 0, ended.err
    rows = read_pool(folder / "out" / "reference_pool.jsonl")
    for row, own in zip(rows, ROWS, strict=True):
        assert row["rewards"] == pytest.approx([value(text, own["answer"]) for text in row["responses"]])
    calibrator = RewardCalibrator.from_pretrained("out")
    assert f"{int(calibrator.no_reward.sum())} without a reward left out" in ended.out


def test_column_with_the_name_of_what_rewards_get_is_refused(run, policy, folder):
    (folder / "taken.jsonl").write_text('{"prompt": "how", "completions": "so"}')
    for command in (("generate",), ("calibrate", "out")):
        ended = run(*command, "-f", "taken.jsonl", "-m", policy, "-r", "verify.py:judge")
        assert ended.code == 1 and "got 'completions', which a reward is passed anyway" in ended.err


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("solver", ["rl", "quantile_regression"])
def test_train_passes_columns_and_the_state(run, policy, folder, solver):
    (folder / "both.py").write_text(
        "import verify\n"
        "def check(prompts, completions, answer, trainer_state, log_metric, log_extra, **kwargs):\n"
        "    assert trainer_state.global_step == 0\n"
        "    return verify.check(prompts, completions, answer, log_metric, log_extra)\n"
    )
    ended = run(
        "train", "--model", policy, "--reward_model", "both.py:check", "--train_file", "sums.jsonl",
        "--solver", solver, "--output_dir", "trained", "--num_reference", 24, "--transform", "identity",
        "--max_completion_length", 6, "--max_steps", 1, "--per_device_train_batch_size", 4, "--use_cpu", "true",
        "--bf16", "false", "--report_to", "none", "--save_strategy", "no", "--gradient_checkpointing", "false",
        *(["--num_generations", 4] if solver == "rl" else []),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = read_pool(folder / "trained" / "_calibration" / "reference_pool.jsonl")
    for row, own in zip(rows, ROWS, strict=True):
        assert row["rewards"] == pytest.approx([value(text, own["answer"]) for text in row["responses"]])
    bad = run(
        "train", "--reward_model", "both.py:chek", "--train_file", "sums.jsonl", "--output_dir", "x", "--dry-run"
    )
    assert bad.code == 1 and "Did you mean `check`?" in bad.err


@pytest.mark.parametrize("command", [("generate",), ("calibrate",), ("train",)])
def test_help_says_that_the_files_code_is_run(run, command):
    text = " ".join(run(*command, "--help").out.replace("│", " ").split())
    assert "FILE.py:NAME" in text and ("runs that file's code" in text or "whose code is run" in text)


def test_push_refuses_what_others_cannot_load(run, policy, folder):
    ended = run("push", policy, "me/policy", "-s", "best_of_n", "-r", "verify.py:check")
    assert ended.code == 1 and "`reward_model` must be one that others can load" in ended.err
