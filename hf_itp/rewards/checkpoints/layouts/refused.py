"""Checkpoints that cannot serve as a reward model, each kind with the reason and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import transformers

from hf_itp.errors import RewardModelError
from hf_itp.rewards.checkpoints.checkpoint import Checkpoint


class Refusal(NamedTuple):
    """
    One kind of refused checkpoints.

    Args:
        fits (`Callable`): Whether a checkpoint is of this kind.
        reason, remedy (`str`): For the message "Reward model 'x' `reason`. `remedy`".
    """

    fits: Callable[[Checkpoint], object]
    reason: str
    remedy: str


_CALLABLE = "a callable f(prompts, completions, **kwargs)"


def _named(pattern: str) -> Callable[[Checkpoint], object]:
    return lambda checkpoint: any(
        re.search(pattern, name) for name in (checkpoint.architecture, str(checkpoint.config.get("model_type")))
    )


def _of_no_known_class(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.architecture) and not hasattr(transformers, checkpoint.architecture)


def _ranks_pairs(checkpoint: Checkpoint) -> bool:
    return "ranker_type" in checkpoint.config or bool(_named(r"PairRM|[Rr]anker|Pair_?[Pp]reference")(checkpoint))


_PAIRWISE = Refusal(
    _ranks_pairs,
    "compares two responses and gives no response a reward of its own",
    f"Pass a reward model that scores one response, or {_CALLABLE} that plays a tournament.",
)
_COST = Refusal(
    lambda checkpoint: checkpoint.config.get("score_type") == "cost" or _named(r"CostModel$")(checkpoint),
    "is a cost model: higher is worse, so every strategy would pick the worst response",
    f"Pass {_CALLABLE} that returns the negated cost.",
)
_UNKNOWN = Refusal(
    lambda checkpoint: not checkpoint.brings_model_code and _of_no_known_class(checkpoint),
    "is of a class that neither transformers nor the checkpoint holds",
    f"Pass {_CALLABLE} that scores with the library it was trained with.",
)
_STEPS = Refusal(
    _named(r"ForTokenClassification$|ForProcessRewardModel$"),
    "judges steps, not responses",
    "Load it with `ProcessRewardModel.from_pretrained(...)`.",
)
_RESPONSES = Refusal(
    _named(r"ForSequenceClassification$|ForRewardModel$"),
    "gives a response one reward and judges no steps",
    "Load it with `RewardModel.from_pretrained(...)`.",
)
_ANSWERS = Refusal(
    _named(r"ForCausalLM$|LMHeadModel$"),
    "is a language model, which judges a step by what it would say",
    "Pass `good_token` and `bad_token`, as its card gives them.",
)


def refuse(checkpoint: Checkpoint) -> None:
    """Raise `RewardModelError` if, by its configuration, a checkpoint gives no response a reward."""
    _refuse(checkpoint, _STEPS, _PAIRWISE, _COST, _UNKNOWN)


def refuse_as_process(checkpoint: Checkpoint, language_model: bool) -> None:
    """Raise `RewardModelError` if, by its configuration, a checkpoint judges no steps."""
    _refuse(checkpoint, _RESPONSES, _PAIRWISE, _COST, _UNKNOWN, *([] if language_model else [_ANSWERS]))


def _refuse(checkpoint: Checkpoint, *refusals: Refusal) -> None:
    for fits, reason, remedy in refusals:
        if fits(checkpoint):
            shown = f" (`{checkpoint.architecture}`)" if checkpoint.architecture else ""
            raise RewardModelError(f"Reward model '{checkpoint.name}'{shown} {reason}. {remedy}")
