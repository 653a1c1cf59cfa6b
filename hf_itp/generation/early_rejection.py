"""
Early rejection as a caller asks for it: how often candidates are judged while they grow, and how many are ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_itp.checks import as_number, check_count
from hf_itp.errors import ArgumentError


@dataclass(frozen=True)
class EarlyRejection:
    """
    When candidates are judged before they are complete, and how many are ended.

    Every `interval` tokens the candidates of a prompt that are still in the race, complete or not, are scored as far
    as they are written. The `share` of lowest reward leaves the race, and the incomplete ones among these end. The
    winner is the complete response of highest reward.

    *When to use*: Drawing dominates the cost, and a bad response shows early. Not where the reward depends on the end
    of a response, such as the result of a calculation.

    *Cost*: Fewer tokens, more rewards: every review scores what is in the race and has grown.

    *Paper*: [Fast Best-of-N Decoding via Speculative Rejection](https://huggingface.co/papers/2410.20290). It reviews
    when memory is full; here reviews come at fixed lengths, so that a seed gives one result on every machine.

    Args:
        share (`float`, *optional*, defaults to 0.5): Share rejected at each review, in `[0, 1)`: the paper's alpha.
        interval (`int`, *optional*, defaults to 32): Tokens between two reviews.
        audit (`float`, *optional*, defaults to 0.0): Share of prompts drawn in full, at full price, with the reviews
            replayed on what was drawn. The result is the same, and the diagnostics say what was saved and whether
            best-of-n had another winner. Seed and prompt decide which prompts these are.

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
        share = as_number(self.share)
        if share is None or not 0 <= share < 1:
            raise ArgumentError(
                f"`early_rejection` must be a share of at least 0 and below 1, got {self.share!r}. Pass e.g. "
                "early_rejection=0.5 to reject half of the candidates at each review."
            )
        interval = check_count("interval", self.interval, 1, "Pass e.g. interval=32 to EarlyRejection.")
        audit = self.audit if isinstance(self.audit, bool) else as_number(self.audit)
        if audit is None or not 0 <= audit <= 1:
            raise ArgumentError(
                f"`audit` of EarlyRejection must be a share between 0 and 1, got {self.audit!r}. Pass e.g. "
                "audit=0.1 to draw a tenth of the prompts in full."
            )
        for name, value in (("share", share), ("interval", interval), ("audit", audit)):
            object.__setattr__(self, name, value)


def check_early_rejection(
    early_rejection: float | EarlyRejection, strategy: str, num_candidates: int, batch_size: int | None
) -> EarlyRejection:
    """
    Return it as an [`EarlyRejection`], checked against the call.

    Raises:
        `ArgumentError`: If it breaks its rule, or the call asks for something it cannot be combined with.
    """
    if not isinstance(early_rejection, EarlyRejection):
        early_rejection = EarlyRejection(early_rejection)
    if strategy != "best_of_n":
        raise ArgumentError(
            f"`strategy` must be 'best_of_n' with `early_rejection`, got {strategy!r}, whose law needs the rewards of "
            "all candidates. Pass strategy='best_of_n', or leave `early_rejection` out."
        )
    if batch_size is not None and batch_size < num_candidates:
        raise ArgumentError(
            f"`batch_size` must be at least `num_candidates` ({num_candidates}) with `early_rejection`, got "
            f"{batch_size}: candidates that are compared while they grow share a batch. Leave `batch_size` out, or "
            "draw fewer candidates."
        )
    return early_rejection
