"""Test that a process ends well after its work: gloo's threads end before Python (`distributed/processes.py`)."""

from __future__ import annotations

import pytest
import torch.distributed

from hf_itp.cli.launches import launch_left
from tests.distributed.launching import start_two


@pytest.mark.slow
def test_group_of_messages_is_gone_when_python_ends(tmp_path):
    for process in start_two("tests.distributed.ends_after_a_message", tmp_path):
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output
    assert [(tmp_path / f"left{rank}").read_text() for rank in (0, 1)] == ["[None]", "[None]"]


@pytest.fixture
def joins(tmp_path):
    """Join a launch of one process, and remove whatever is left of it after the test."""
    yield lambda: torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("code", [None, 0])
def test_program_leaves_the_launch_it_has_joined(joins, code):
    with pytest.raises(SystemExit), launch_left():
        joins()
        raise SystemExit(code)
    assert not torch.distributed.is_initialized()


def test_program_that_failed_waits_for_nobody(joins):
    with pytest.raises(SystemExit), launch_left():
        joins()
        raise SystemExit(1)
    assert torch.distributed.is_initialized()


def test_launch_of_the_caller_stays(joins):
    joins()
    with launch_left():
        pass
    assert torch.distributed.is_initialized()
