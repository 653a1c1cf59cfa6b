"""Test that a killed calibration resumes where it stopped and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_itp.errors import ArgumentError
from hf_itp.pools.journal import ReferencePool

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"seed": 0}


def start(folder: Path, *settings: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.calibration.fit_in_a_process", str(folder), *map(str, settings)]
    return subprocess.Popen(command, cwd=ROOT)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def lines_written(folder: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in folder.glob("reference_pool.part-*.jsonl"))


@pytest.mark.slow
def test_killed_five_times_it_ends_in_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, 0.0)
    assert process.wait(timeout=1000) == 0

    moments = random.Random(0)
    rows_left_behind = []
    for _ in range(5):
        # Four of 28 prompts at most, so that it never ends by itself however late the kill comes.
        process, before = start(killed, 0.15, 4), lines_written(killed)
        deadline = time.monotonic() + 600
        while lines_written(killed) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows_left_behind.append(lines_written(killed))
    assert rows_left_behind == sorted(set(rows_left_behind)), "each run continues the one before"
    assert not (killed / "calibration.safetensors").exists()

    process = start(killed, 0.0)
    assert process.wait(timeout=1000) == 0
    assert digests(killed) == digests(whole)
    assert set(digests(whole)) == {
        "calibration.json", "calibration.safetensors", "reference_pool.json", "reference_pool.jsonl",
    }  # fmt: skip


def test_line_cut_short_is_no_row(tmp_path):
    pool = ReferencePool(tmp_path, SETTINGS)
    pool.append([{"index": 0, "prompt": "a"}, {"index": 1, "prompt": "b"}])
    part = tmp_path / "reference_pool.part-0.jsonl"
    part.write_bytes(part.read_bytes()[:-5])
    assert set(pool.rows()) == {0}
    pool.append([{"index": 1, "prompt": "b"}])
    pool.finish()
    assert [json.loads(line) for line in (tmp_path / "reference_pool.jsonl").read_text().splitlines()] == [
        {"index": 0, "prompt": "a"}, {"index": 1, "prompt": "b"},
    ]  # fmt: skip


def test_folder_of_another_draw_is_refused(tmp_path):
    ReferencePool(tmp_path, SETTINGS)
    with pytest.raises(ArgumentError, match=r"`seed` 0 instead of 1. Choose another folder"):
        ReferencePool(tmp_path, {"seed": 1})


def test_rows_of_all_processes_are_found(tmp_path):
    ReferencePool(tmp_path, SETTINGS, part=0).append([{"index": 1}])
    other = ReferencePool(tmp_path, SETTINGS, part=1)
    other.append([{"index": 0}])
    assert set(other.rows()) == {0, 1}
