"""Test that a killed process ends the launch within 30 seconds and with an error."""

from __future__ import annotations

import time

import pytest

from tests.distributed.launching import accelerate_launch, start_two

MODULE = "tests.distributed.one_is_killed"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sampling", "waiting", "forward"])
def test_killed_process_ends_the_launch_within_30_seconds(moment, tmp_path):
    launch = accelerate_launch("-m", MODULE, tmp_path, moment, timeout=500)
    assert time.time() - float((tmp_path / "killed_at").read_text()) < 30
    assert launch.returncode != 0
    assert "SIGKILL" in launch.stderr or "-9" in launch.stderr, "the launcher must say what ended"


@pytest.mark.slow
def test_process_that_waits_for_a_killed_one_says_so_without_a_launcher(tmp_path):
    survivor, victim = start_two(MODULE, tmp_path, "waiting")
    output, _ = survivor.communicate(timeout=500)
    ended_at = time.time()
    victim.communicate(timeout=100)
    assert victim.returncode == -9, "the test must kill it"
    assert survivor.returncode != 0
    assert ended_at - float((tmp_path / "killed_at").read_text()) < 30
    assert "Process 0 of 2 has lost another process" in output
    assert "start the whole launch again" in output
