"""
Fit a calibrator in a folder, for the test that kills it.

    python -m tests.calibration.fit_in_a_process FOLDER PAUSE [CALLS]

The reward takes PAUSE seconds, and waits to be killed after CALLS calls.
"""

from __future__ import annotations

import math
import sys
import time

import torch

from hf_itp import RewardCalibrator
from tests.tiny import PromptBoundReward, tiny_model, tiny_tokenizer


def main(folder: str, pause: float, most_calls: float = math.inf) -> None:
    torch.set_num_threads(1)
    scores = PromptBoundReward()

    def prompt_bound_reward(prompts, completions, **kwargs):
        time.sleep(pause)
        while len(scores.calls) >= most_calls:
            time.sleep(1.0)
        return scores(prompts, completions)

    words = [
        "bread",
        "cold",
        "cook",
        "day",
        "eat",
        "flour",
        "good",
        "jar",
        "milk",
        "mix",
        "out",
        "rest",
        "rise",
        "salt",
    ]
    prompts = [f"how do you {first} a {second}" for first in words for second in words[:2]]
    RewardCalibrator.fit(
        tiny_model("llama"), prompt_bound_reward, prompts, num_reference=24, seed=2, tokenizer=tiny_tokenizer(),
        output_dir=folder, max_new_tokens=6, progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
