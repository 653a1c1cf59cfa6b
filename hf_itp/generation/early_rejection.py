"""
Settings of early rejection: how often candidates are judged while they grow, and how many are given up.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_itp.checks import check_count, check_number
from hf_itp.errors import ArgumentError


@dataclass(frozen=True)
class EarlyRejection:
    """
    Configure early rejection: when incomplete candidates are judged, and how many are given up.

    Every `interval` tokens the candidates of a prompt that are still in the race, complete or not, are scored as far
    as they are written. The `share` of lowest reward leaves the race; of these, the incomplete ones are drawn no
    further. The winner is the complete response of highest reward. What has no reward (`None`) leaves first.

    *When to use*: Drawing dominates the cost, and a bad response shows early. Not where the reward depends on the end
    of a response, such as the result of a calculation.

    *Cost*: Fewer tokens, more rewards: every review scores all candidates still in the race that have grown.

    *Paper*: [Fast Best-of-N Decoding via Speculative Rejection](https://huggingface.co/papers/2410.20290). It reviews
    when memory is full; here reviews come at fixed lengths, so that a seed gives one result on every machine.

    Args:
        share (`float`, *optional*, defaults to 0.5): Share given up at each review, in `[0, 1)`: the paper's alpha.
        interval (`int`, *optional*, defaults to 32): Tokens between two reviews.
        audit (`float`, *optional*, defaults to 0.0): Share of prompts drawn in full, at full price, with the reviews
            replayed on what was drawn. The result is the same, and the diagnostics say what was saved and whether
            best-of-n had another winner. The seed and the prompt decide which prompts these are.

    Examples:

    ```python
    >>> EarlyRejection(share=0.25, interval=16)
    EarlyRejection(share=0.25, interval=16, audit=0.0)

    ```
    """

    share: float = 0.5
    interval: int = 32
    audit: float = 0.0

    def __post_init__(self) -> None:
        remedy = "Pass e.g. early_rejection=0.5 to give up half of the candidates at each review."
        share = check_number("early_rejection", self.share, remedy, "in [0, 1)", lambda share: 0 <= share < 1)
        interval = check_count("interval", self.interval, 1, "Pass e.g. interval=32 to EarlyRejection.")
        audit: float = self.audit
        if not isinstance(audit, bool):
            remedy = "Pass e.g. audit=0.1 to EarlyRejection to draw a tenth of the prompts in full."
            audit = check_number("audit", audit, remedy, "in [0, 1]", lambda audit: 0 <= audit <= 1)
        for name, value in (("share", share), ("interval", interval), ("audit", audit)):
            object.__setattr__(self, name, value)


def check_early_rejection(
    early_rejection: float | EarlyRejection,
    strategy: str,
    num_candidates: int,
    batch_size: int | None,
    reward_view: str,
) -> EarlyRejection:
    """
    Return the settings of early rejection, if the call can use it.

    Raises:
        `ArgumentError`: If `early_rejection` breaks its rule, or the call asks for something it does not work with.
    """
    if not isinstance(early_rejection, EarlyRejection):
        early_rejection = EarlyRejection(early_rejection)
    if strategy != "best_of_n":
        raise ArgumentError(
            f"`early_rejection` must come with strategy='best_of_n', got strategy={strategy!r}, whose law needs the "
            "rewards of all candidates. Pass strategy='best_of_n', or leave `early_rejection` out."
        )
    if reward_view != "full":
        raise ArgumentError(
            f"`early_rejection` must be absent with reward_view={reward_view!r}, got {early_rejection}: a response "
            "that still thinks has no final part to judge it by. Leave one of them out."
        )
    if batch_size is not None and batch_size < num_candidates:
        raise ArgumentError(
            f"`batch_size` must be at least `num_candidates` ({num_candidates}) with `early_rejection`, got "
            f"{batch_size}: candidates that are compared while they grow share a batch. Leave `batch_size` out, or "
            "draw fewer candidates."
        )
    return early_rejection
