"""Test that two processes that share a calibration wait for each other, and make equally many sharded passes."""

from __future__ import annotations

import pytest
import torch

from tests.calibration.fit_in_two_processes import fit
from tests.distributed.launching import start_two
from tests.tiny import PromptBoundReward


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["whole", "sharded"])
def test_slow_judge_is_waited_for_and_all_get_what_one_would(tmp_path, weights):
    """
    The judge takes longer than the group of the processes waits. There are three chunks for two processes: with
    sharded weights, a process that draws once less would leave the other waiting for ever.
    """
    processes = start_two("tests.calibration.fit_in_two_processes", tmp_path, weights)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    alone = fit(None, PromptBoundReward()).reference_rewards
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rewards-{rank}.pt"), alone, rtol=0, atol=0)
