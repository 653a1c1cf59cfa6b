"""Start steps of `tests.hub.client` against a loopback Hub, and read what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub.server import LoopbackHub

ROOT = Path(__file__).parent.parent.parent


class Machine:
    """Computer with a cache of its own: everything it has comes from the Hub."""

    def __init__(self, hub: LoopbackHub, home: Path, **environment: str):
        self._environment = os.environ | hub.environment(home) | {"OMP_NUM_THREADS": "1"} | environment
        self.home = home

    def run(self, step: str, **arguments: Any) -> dict[str, Any]:
        """Run a step that must succeed; return its result."""
        process = self.start(step, **arguments)
        assert process.returncode == 0, process.stdout + process.stderr
        return json.loads(process.stdout.strip().splitlines()[-1])

    def start(self, step: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
        return self._run("-m", "tests.hub.client", step, json.dumps(arguments))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `hf-itp` with these arguments."""
        return self._run("-m", "hf_itp.cli", *arguments)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = self._environment | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=1000
        )
