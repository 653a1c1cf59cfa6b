"""Test a file of prompts for the night: nothing is lost, and the bytes are those of one unbroken run."""

from __future__ import annotations

import functools
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hf_itp import Policy
from hf_itp.rewards import RewardModel
from tests.cli.test_app import unwrapped
from tests.tiny import tiny_tokenizer

QUESTIONS = [
    "how do i bake bread",
    "what is it",
    "so you can rest",
    "what is it",
    "let it rise",
    "mix it by hot water",
]
ROWS = [{"id": f"q{n}", "prompt": text, "answer": n % 3, "index": 10 * n} for n, text in enumerate(QUESTIONS)]


def written(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def night(generate, tmp_path):
    """`night(...)`: `hf-itp generate` on the questions, two a call, into `answers.jsonl`."""
    questions, answers = written(tmp_path / "questions.jsonl"), tmp_path / "answers.jsonl"

    def night(*arguments, file=questions, output=answers):
        return generate("-f", file, "-o", output, "--prompts-per-call", 2, "--quiet", *arguments)

    return night


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_file_holds_a_row_per_prompt_with_the_columns_of_the_input(night, tmp_path, policy, reward_model):
    ended = night("--all-candidates", "-k", 2, "--beta", 1.0)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    rows = rows_of(tmp_path / "answers.jsonl")
    assert [row["index"] for row in rows] == list(range(len(ROWS)))
    assert [(row["id"], row["answer"], row["input_index"]) for row in rows] == [
        (row["id"], row["answer"], row["index"]) for row in ROWS
    ]
    library, tokenizer = Policy.from_pretrained(str(policy)), tiny_tokenizer()
    reward = RewardModel.from_pretrained(str(reward_model))
    for row in rows[:3]:
        assert "seconds" not in row["diagnostics"]
        output = library.generate(
            [row["prompt"]],
            strategy="pessimism",
            beta=1.0,
            reward_model=reward,
            num_candidates=4,
            num_return_sequences=2,
            seed=0,
            max_new_tokens=6,
        )
        assert row["prompt"] == [{"role": "user", "content": QUESTIONS[row["index"]]}]
        assert row["responses"] == output.texts[0]
        assert row["rewards"] == pytest.approx(output.rewards[0].tolist(), abs=1e-4)
        winners = [output.candidates[0][index] for index in output.selected[0]]
        assert row["num_tokens"] == [len(ids) for ids in winners]
        stops = ["stop" if ids[-1] == tokenizer.eos_token_id else "length" for ids in winners]
        assert row["finish_reasons"] == stops and len(row["candidates"]) == 4


def test_prompt_that_comes_again_is_drawn_for_again(night, tmp_path):
    night("--all-candidates")
    rows = rows_of(tmp_path / "answers.jsonl")
    assert rows[1]["prompt"] == rows[3]["prompt"] and rows[1]["candidates"] != rows[3]["candidates"]


def drawn(rows):
    return [([c["response"] for c in row["candidates"]], row["responses"], row["finish_reasons"]) for row in rows]


@pytest.mark.parametrize("per_call", [1, 3, 100])
def test_results_do_not_depend_on_the_prompts_of_a_call(night, tmp_path, per_call):
    night("--all-candidates")
    night("--all-candidates", "--prompts-per-call", per_call, output=tmp_path / "other.jsonl")
    assert drawn(rows_of(tmp_path / "other.jsonl")) == drawn(rows_of(tmp_path / "answers.jsonl"))


def test_standard_output_is_the_same_rows(night, generate, tmp_path):
    night("--all-candidates")
    ended = generate("--json", "--all-candidates", "-f", tmp_path / "questions.jsonl")
    assert ended.code == 0
    spoken = [json.loads(line) for line in ended.out.splitlines()]
    assert drawn(spoken) == drawn(rows_of(tmp_path / "answers.jsonl"))
    assert [row["id"] for row in spoken] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_run_cut_short_anywhere_ends_in_the_same_bytes(night, tmp_path, share):
    answers = tmp_path / "answers.jsonl"
    night()
    whole = answers.read_bytes()
    answers.write_bytes(whole[: int(share * len(whole))])
    assert night().code == 0
    assert answers.read_bytes() == whole


def test_finished_run_draws_nothing_and_changes_no_file(night, tmp_path, monkeypatch):
    night()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("answers*")}
    monkeypatch.setattr(Policy, "generate", None)
    assert night().code == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("answers*")} == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("--seed", 1), "`seed`"),
        (("--beta", 0.7), "`strategy.beta`"),
        (("-s", "best_of_n"), "`strategy."),
        (("-n", 3), "`num_candidates`"),
        (("--max-new-tokens", 5), "`max_new_tokens`"),
        (("--temperature", 0.5), "`temperature`"),
        (("--all-candidates",), "`all_candidates`"),
        (("--system", "be kind"), "`prompts.fingerprint`"),
        (("--dtype", "bfloat16"), "`policy.dtype`"),
    ],
)
def test_results_of_other_settings_are_refused_by_name_unless_replaced(night, tmp_path, change, name):
    answers = tmp_path / "answers.jsonl"
    night()
    whole = answers.read_bytes()
    refused = night(*change)
    assert refused.code == 1 and name in refused.err and "add --overwrite" in unwrapped(refused.err)
    assert answers.read_bytes() == whole
    assert night(*change, "--overwrite").code == 0
    assert answers.read_bytes() != whole and len(rows_of(answers)) == len(ROWS)


def test_other_prompts_or_columns_are_refused(night, tmp_path):
    night()
    for rows in (ROWS[:-1], [{**row, "answer": 7} for row in ROWS]):
        refused = night(file=written(tmp_path / "others.jsonl", rows))
        assert refused.code == 1 and "must hold results of the same prompts and settings" in unwrapped(refused.err)


def test_size_of_a_batch_may_change_on_the_way(night, tmp_path):
    night()
    lines = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:3]))
    assert night("--prompts-per-call", 1, "--batch-size", 3).code == 0
    assert len(rows_of(tmp_path / "answers.jsonl")) == len(ROWS)


def test_file_of_something_else_is_left_alone(night, tmp_path):
    (tmp_path / "answers.jsonl").write_text("mine\n")
    refused = night()
    assert refused.code == 1 and "add --overwrite to replace it" in unwrapped(refused.err)
    assert (tmp_path / "answers.jsonl").read_text() == "mine\n"
    assert night("--overwrite").code == 0 and len(rows_of(tmp_path / "answers.jsonl")) == len(ROWS)


def failing_on(monkeypatch, word):
    """Let the reward fail on prompts with a word, as a judge may whose network fails."""
    score = RewardModel.score

    @functools.wraps(score)
    def failing(self, prompts, *args, **kwargs):
        if any(word in prompt[-1]["content"] for prompt in prompts):
            raise ValueError(f"no verdict on {word}")
        return score(self, prompts, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score", failing)


def test_prompt_that_fails_loses_no_other_and_is_tried_again(night, tmp_path, monkeypatch):
    night(output=tmp_path / "good.jsonl")
    answers = tmp_path / "answers.jsonl"
    with monkeypatch.context() as broken:
        failing_on(broken, "rise")
        ended = night()
        assert ended.code == 1 and "1 of 6 prompts failed" in unwrapped(ended.err)
    good, rows = rows_of(tmp_path / "good.jsonl"), rows_of(answers)
    for row in rows:
        if "error" not in row:  # its neighbour in the call was drawn by itself, which may round otherwise
            assert row["responses"] == good[row["index"]]["responses"]
            assert row["rewards"] == pytest.approx(good[row["index"]]["rewards"], abs=1e-4)
    [failed] = [row for row in rows if "error" in row]
    assert (failed["index"], failed["id"]) == (4, "q4") and "no verdict on rise" in failed["error"]
    assert night().code == 0
    assert [row["responses"] for row in rows_of(answers)] == [row["responses"] for row in good]


def test_failing_prompt_leaves_its_row_on_standard_output(generate, tmp_path, monkeypatch):
    failing_on(monkeypatch, "rise")
    file = written(tmp_path / "questions.jsonl")
    ended = generate("--json", "-f", file)
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 1 and len(rows) == 6 and [row["id"] for row in rows if "error" in row] == ["q4"]
    text = generate("-f", file)
    assert text.code == 1 and text.out.count("### ") == 5 and "No response to 'let it rise'" in text.err


def test_command_on_which_everything_fails_ends_with_the_error_and_leaves_nothing(night, tmp_path, monkeypatch):
    failing_on(monkeypatch, "")
    ended = night()
    assert ended.code == 1 and "no verdict on" in ended.err and not (tmp_path / "answers.jsonl").exists()
    monkeypatch.undo()
    assert night("--seed", 3).code == 0  # what failed has left no settings behind


def test_prompts_may_be_in_another_column(night, tmp_path):
    rows = [{"question": row["prompt"], "prompt": "the teacher's own"} for row in ROWS]
    rows[2] = {"question": [{"role": "user", "content": ROWS[2]["prompt"]}]}
    file = tmp_path / "named.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    night()
    ended = night("--prompt-field", "question", file=file, output=tmp_path / "named.out.jsonl")
    assert ended.code == 0, ended.err
    found, expected = rows_of(tmp_path / "named.out.jsonl"), rows_of(tmp_path / "answers.jsonl")
    assert [row["responses"] for row in found] == [row["responses"] for row in expected]
    assert [row["input_prompt"] for row in found] == ["the teacher's own"] * 2 + [None] + ["the teacher's own"] * 3
    missing = night("--prompt-field", "query", file=file, output=tmp_path / "none.jsonl")
    assert missing.code == 1 and "Line 1 of" in missing.err and "`query`" in missing.err


def test_column_that_would_hide_another_is_refused(night, tmp_path):
    file = written(tmp_path / "both.jsonl", [{"prompt": "how", "rewards": 1, "input_rewards": 2}])
    refused = night(file=file)
    assert refused.code == 1 and "`rewards` and `input_rewards`" in unwrapped(refused.err)


def test_progress_has_rate_and_time_left_on_stderr_only(generate, tmp_path):
    file = written(tmp_path / "questions.jsonl")
    ended = generate("-f", file, "-o", tmp_path / "answers.jsonl")
    assert ended.out == "" and "6/6 [" in ended.err and "prompts/s]" in ended.err.replace("s/ prompts]", "prompts/s]")


PROGRAM = "from hf_itp.cli import main; main()"


def started(policy, reward_model, *arguments, **streams):
    models = ("-m", policy, "-r", reward_model, "-n", 4, "--max-new-tokens", 6)
    command = [sys.executable, "-c", PROGRAM, "generate", *map(str, (*models, *arguments))]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams)


@pytest.mark.slow
def test_pipe_gets_only_json_and_closing_it_early_is_no_traceback(policy, reward_model, tmp_path):
    file = written(tmp_path / "questions.jsonl", ROWS * 5)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    out, _ = started(policy, reward_model, "--json", "-f", file, **pipes).communicate(timeout=300)
    assert len([json.loads(line) for line in out.splitlines()]) == 30
    with started(policy, reward_model, "--json", "-f", file, **pipes) as process:
        assert json.loads(process.stdout.readline())["id"] == "q0"
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bytes(policy, reward_model, tmp_path):
    file, answers, whole = written(tmp_path / "questions.jsonl", ROWS * 20), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    quiet = ("-f", file, "--prompts-per-call", 2, "--quiet")
    assert started(policy, reward_model, *quiet, "-o", whole).wait(timeout=600) == 0
    kills = 0
    for _ in range(3):
        before = answers.read_bytes().count(b"\n") if answers.exists() else 0
        process = started(policy, reward_model, *quiet, "-o", answers)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if answers.exists() and answers.read_bytes().count(b"\n") > before:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3 and 0 < answers.read_bytes().count(b"\n") < 120
    assert started(policy, reward_model, *quiet, "-o", answers).wait(timeout=600) == 0
    assert answers.read_bytes() == whole.read_bytes()
