"""
Kill process 1 of a launch in the middle of a call, as the kernel does when memory runs out.

    accelerate launch --multi_gpu --num_processes 2 -m tests.distributed.one_is_killed FOLDER MOMENT

MOMENT says what process 0 does at that time: `sampling`, it has minutes of tokens ahead; `waiting`, it has drawn its
part; `forward`, it waits in a forward pass for weights that process 1 holds. Process 1 notes when it was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from transformers import StoppingCriteria, StoppingCriteriaList

from tests.distributed.cases import generated
from tests.tiny import VOCABULARY_SIZE, tiny_model


class Script(StoppingCriteria):
    """Criterion that kills process 1 at its third token, and slows or ends process 0."""

    def __init__(self, rank: int, moment: str, killed_at: Path):
        self.victim, self.moment, self.killed_at, self.calls = rank == 1, moment, killed_at, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        if self.victim and self.calls == 3:
            time.sleep(1.0)
            self.killed_at.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.victim and self.moment == "sampling":
            time.sleep(1.0)
        return torch.full((len(input_ids),), self.moment == "waiting" and not self.victim)


def main(folder: Path, moment: str) -> None:
    rank = Accelerator(cpu=True).process_index
    model = tiny_model("llama")
    if moment == "forward":
        fully_shard(model)
    criteria = StoppingCriteriaList([Script(rank, moment, folder / "killed_at")])
    generated(
        model,
        "33 candidates",
        "candidates",
        stopping_criteria=criteria,
        max_new_tokens=240,
        eos_token_id=VOCABULARY_SIZE,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
