"""A process that is killed ends the other, within 30 seconds and saying why."""

from __future__ import annotations

import time

import pytest

from tests.distributed.launching import start_two


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sampling", "waiting", "forward"])
def test_killed_process_ends_the_other_within_30_seconds(moment, tmp_path):
    survivor, victim = start_two("tests.distributed.one_is_killed", tmp_path, moment)
    output, _ = survivor.communicate(timeout=500)
    ended_at = time.time()
    victim.communicate(timeout=100)
    assert victim.returncode == -9, "the test has to kill it"
    assert survivor.returncode != 0
    assert ended_at - float((tmp_path / "killed_at").read_text()) < 30
    assert "Process 0 of 2 has lost the other process" in output
    assert "start the whole launch again" in output
