"""
Calibrate into FOLDER as one of two processes, with a judge that in process 1 takes longer than the group waits.

WEIGHTS is `whole`, or `sharded` by FSDP2.

    RANK=0 WORLD_SIZE=2 ... python -m tests.calibration.fit_in_two_processes FOLDER WEIGHTS
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.distributed.fsdp import fully_shard

from hf_itp import RewardCalibrator
from tests.tiny import PromptBoundReward, tiny_model, tiny_tokenizer

# Two to a chunk, so three chunks: one process draws twice, the other once, and the last chunk is half full.
PROMPTS = ["a day", "not a day", "how do you bake bread", "what is salt for", "a new day"]
NUM_REFERENCE = 40
GROUP_SECONDS = 4.0
JUDGE_SECONDS = 9.0


def fit(folder: Path | None, reward: Any, model: Any = None) -> RewardCalibrator:
    return RewardCalibrator.fit(
        model or tiny_model("llama"), reward, PROMPTS, num_reference=NUM_REFERENCE, seed=2,
        tokenizer=tiny_tokenizer(), output_dir=folder, max_new_tokens=6, progress=False,
    )  # fmt: skip


class SlowJudge(PromptBoundReward):
    """Reward that takes long once, in process 1."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.seconds)
        self.seconds = 0.0
        return super().__call__(*args, **kwargs)


def main(folder: Path, weights: str) -> None:
    torch.set_num_threads(1)
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=GROUP_SECONDS))
    rank = Accelerator(cpu=True, kwargs_handlers=[patience]).process_index
    model = tiny_model("llama")
    if weights == "sharded":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    calibrator = fit(folder / "pool", SlowJudge(JUDGE_SECONDS if rank == 1 else 0.0), model)
    torch.save(calibrator.reference_rewards, folder / f"rewards-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
