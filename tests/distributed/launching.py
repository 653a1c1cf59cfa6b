"""Start programs of this folder in two processes that form one launch, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def accelerate_launch(*arguments: object, timeout: float = 1000.0) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch` with two processes; its output holds what both wrote."""
    # `accelerate launch` calls any number of processes on one machine multi-GPU.
    launcher = ("--multi_gpu", "--num_processes", 2, "--main_process_port", free_port())
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, *arguments]
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=_environment(), text=True, capture_output=True, timeout=timeout
    )


def start_two(module: str, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start both processes without a launcher, which would end one when the other ends."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=_environment()
            | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in "01"
    ]


def _environment() -> dict[str, str]:
    # One core each, and no accelerator even if there is one: these tests are about gloo.
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | quiet | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
