"""
Print the files of `hf_itp` that a call walks through, in the order in which calls enter them.

    python -m tests.walks

Two walks: `generate(strategy="pessimism")` from the call to the returned tensor, and a reward model from the token ids
of the responses to the selected index. A line names the file, the function by which it was first entered and the file
that called it; what Python runs while it imports is left out. Run it to see what a reader must open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import hf_itp
from hf_itp.generation.candidates import CandidatePools
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

PACKAGE = Path(hf_itp.__file__).parent


def walk(call: Callable[[], Any]) -> list[tuple[str, str, str]]:
    """Make the call; return each file entered, the function by which it was entered first, and the file calling."""
    entered: dict[str, tuple[str, str, str]] = {}

    def file_of(frame: FrameType | None) -> str | None:
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                return path.relative_to(PACKAGE).as_posix()
            frame = frame.f_back
        return None

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_name
        if event != "call" or name == "<module>" or not path.is_relative_to(PACKAGE):
            return
        file = path.relative_to(PACKAGE).as_posix()
        entered.setdefault(file, (file, name, file_of(frame.f_back) or "the caller"))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(entered.values())


def walks() -> dict[str, list[tuple[str, str, str]]]:
    """Both walks, each with everything loaded and called once before, so that only the call itself is walked."""
    policy, tokenizer = tiny_model("llama"), tiny_tokenizer()
    reward_model = hf_itp.RewardModel(tiny_classifier("llama"), tokenizer)
    batch = left_padded_batch([7, 5])

    def generate() -> torch.Tensor:
        return policy.generate(
            **batch, strategy="pessimism", beta=0.5, reward_model=reward_model, tokenizer=tokenizer,
            prompts=["a day", "not a day"], num_candidates=4, seed=0, max_new_tokens=8,
        )  # fmt: skip

    generate()
    original: dict[str, list] = {}
    extend = CandidatePools.extend

    def recorded(self: CandidatePools, *arguments: Any) -> None:
        extend(self, *arguments)
        original["responses"] = [response for pool in self.candidates() for response in pool]

    CandidatePools.extend = recorded
    try:
        generate()
    finally:
        CandidatePools.extend = extend
    responses, strategy = original["responses"], hf_itp.get_strategy("pessimism", beta=0.5)

    def select() -> torch.Tensor:
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        rewards = reward_model(["a day"] * len(texts), texts)
        return strategy.select(rewards, generator=torch.Generator().manual_seed(0))

    return {'generate(strategy="pessimism")': walk(generate), "token ids to the selected index": walk(select)}


if __name__ == "__main__":
    for title, files in walks().items():
        print(f"{title}: {len(files)} files")
        for file, function, caller in files:
            print(f"  {file:45} {function:32} from {caller}")
