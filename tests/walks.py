"""
Print the files of `hf_itp` that a call walks through, in the order in which calls enter them.

    python -m tests.walks

There are two walks: `generate(strategy="pessimism")` from the call to the returned tensor, and a reward from the token
ids of responses to the selected index. A line names the file, the function by which it was first entered and the file
that called it. Files that call into another one are numbered, since a reader passes through them. The others (marked
`.`) answer by themselves, like a formula or a check; calls of `checks.py` and `arrays.py` do not count. Calls back
into a file that waits for the caller, methods of values that were passed, follow at the end. Imports and closures are
left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import hf_itp
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import left_padded_batch, tiny_model, tiny_tokenizer

PACKAGE = f"{Path(hf_itp.__file__).parent}/"
WORDS = ("checks.py", "arrays.py", "errors.py")


@dataclass
class Walk:
    """Files that a call entered, each with its first function and its caller, and which called on or back."""

    entered: dict[str, tuple[str, str]] = field(default_factory=dict)
    passed_through: set[str] = field(default_factory=set)
    back: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name.startswith("<"):
            return
        file, stack = code.co_filename.removeprefix(PACKAGE), files_below(frame)
        caller = stack[0] if stack else "the caller"
        self.entered.setdefault(file, (code.co_name, caller))
        if caller != file:
            if file not in WORDS:
                self.passed_through.add(caller)
            if file in stack and "<locals>" not in code.co_qualname:
                self.back.setdefault((caller, file), code.co_qualname)

    def lines(self) -> list[str]:
        number, lines = 0, []
        for file, (function, caller) in self.entered.items():
            number += file in self.passed_through
            mark = number if file in self.passed_through else "."
            lines.append(f"  {mark:>3} {file:42} {function:30} from {caller}")
        lines += [f"  back from {caller} to {file}: {name}" for (caller, file), name in self.back.items()]
        return [f"{len(self.entered)} files, {number} passed through, {len(self.back)} calls back", *lines]


def files_below(frame: FrameType) -> list[str]:
    """Return the package's files that wait for this call, the nearest first."""
    files, below = [], frame.f_back
    while below is not None:
        if below.f_code.co_filename.startswith(PACKAGE):
            files.append(below.f_code.co_filename.removeprefix(PACKAGE))
        below = below.f_back
    return files


def walk(call: Callable[[], Any]) -> Walk:
    found = Walk()
    sys.setprofile(found.note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def walks() -> dict[str, Walk]:
    """Return both walks; each call is made once before, so that only the call itself is walked."""
    policy, tokenizer = tiny_model("llama"), tiny_tokenizer()
    reward_model = hf_itp.RewardModel(tiny_classifier("llama"), tokenizer)
    batch = left_padded_batch([7, 5])

    def generate(**options: Any) -> Any:
        return policy.generate(
            **batch, strategy="pessimism", beta=0.5, reward_model=reward_model, tokenizer=tokenizer,
            prompts=["a day", "not a day"], num_candidates=4, seed=0, max_new_tokens=8, **options,
        )  # fmt: skip

    responses = generate(return_dict_in_generate=True).candidates[0]
    strategy = hf_itp.get_strategy("pessimism", beta=0.5)

    def select() -> torch.Tensor:
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        return strategy.select(reward_model(["a day"] * len(texts), texts))

    return {'generate(strategy="pessimism")': walk(generate), "token ids to the selected index": walk(select)}


if __name__ == "__main__":
    for title, found in walks().items():
        print(title, *found.lines(), sep="\n")
