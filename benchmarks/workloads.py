"""
Workloads. A workload's name is its definition, so any combination can be named.

    p600-n64-t96          one prompt of about 600 tokens, 64 candidates of up to 96 tokens
    b8-p600-n16-t96       eight prompts of mixed length, up to 600 tokens
    score-p600-n64-t100   64 responses of about 100 tokens to one prompt, scored by a causal reward model
    select-b10000-n1000   the strategies only: 10,000 prompts with 1,000 rewards each
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

STRATEGIES = {
    "best_of_n": {},
    "worst_of_n": {},
    "soft_best_of_n": {"reward_temperature": 0.5},
    "top_quantile": {"multiplier": 4.0},
    "best_of_poisson": {"rate": 100.0},
    "pessimism": {"beta": 0.1},
}
"""Strategies by name, with values for their fields, which hardly change the cost."""

COMPETITORS = {
    "sample": ("ours", "generate", "generate_batch", "llama.cpp"),
    "score": ("ours", "padded forward"),
    "select": tuple(STRATEGIES),
}
"""Contestants by kind of workload, ours first."""

PACKAGES = {"llama.cpp": "llama_cpp"}
"""Packages of contestants that are not installed with this project."""

_NAME = re.compile(r"(?:(score|select)-)?(?:b(\d+)-?)?(?:p(\d+)-)?n(\d+)(?:-t(\d+))?")
_SHORTEST = 40  # tokens of a bare question in its chat template


@dataclass(frozen=True)
class Workload:
    """One workload. Fields that its kind does not use are 0."""

    kind: str
    prompts: int
    prompt_tokens: int
    candidates: int
    max_new_tokens: int

    @classmethod
    def parse(cls, name: str) -> Workload:
        """
        Make the workload of that name.

        Raises:
            `ValueError`: If the name has another form.
        """
        match = _NAME.fullmatch(name)
        kind, prompts, prompt_tokens, candidates, max_new_tokens = match.groups() if match else (None,) * 5
        workload = cls(
            kind or "sample",
            int(prompts or 1),
            int(prompt_tokens or 0),
            int(candidates or 0),
            int(max_new_tokens or 0),
        )
        if workload.name != name or workload.candidates == 0:
            raise ValueError(
                f"A workload must have a known form, got {name!r}. Write p600-n64-t96, b8-p600-n16-t96, "
                "score-p600-n64-t100 or select-b10000-n1000, with numbers of your own."
            )
        return workload

    @property
    def name(self) -> str:
        if self.kind == "select":
            return f"select-b{self.prompts}-n{self.candidates}"
        kind = "" if self.kind == "sample" else f"{self.kind}-"
        batch = f"b{self.prompts}-" if self.prompts > 1 else ""
        return f"{kind}{batch}p{self.prompt_tokens}-n{self.candidates}-t{self.max_new_tokens}"

    def prompt_lengths(self) -> list[int]:
        """Return the tokens of each prompt: in a batch, from a bare question to the longest in equal ratios."""
        shortest = min(_SHORTEST, self.prompt_tokens)
        growth = self.prompt_tokens / shortest
        steps = max(1, self.prompts - 1)
        return [round(shortest * growth ** ((index + (self.prompts == 1)) / steps)) for index in range(self.prompts)]


# Those with targets come first, so that an interrupted run has them.
FULL: Sequence[str] = (
    "select-b10000-n1000",
    "p600-n16-t96",
    "p600-n64-t96",
    "p40-n64-t96",
    "b8-p600-n16-t96",
    "score-p600-n64-t100",
    "p40-n16-t96",
    "p1500-n16-t96",
    "p1500-n64-t96",
    # Points between, for the curves.
    "p600-n4-t96",
    "p150-n16-t96",
    "b2-p600-n16-t96",
    "b4-p600-n16-t96",
    # Long responses and large pools.
    "p40-n16-t256",
    "p600-n16-t256",
    "p1500-n16-t256",
    "p40-n256-t96",
    "p600-n256-t96",
    "p1500-n256-t96",
    "p40-n64-t256",
    "p600-n64-t256",
    "p1500-n64-t256",
    "b8-p600-n16-t256",
    "p40-n256-t256",
    "p600-n256-t256",
    "p1500-n256-t256",
)

QUICK: Sequence[str] = (
    "select-b10000-n1000",
    "p40-n16-t24",
    "p600-n4-t24",
    "p600-n16-t24",
    "score-p300-n16-t50",
    "p40-n4-t24",
)
