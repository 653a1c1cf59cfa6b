"""
Ask a reward again when it fails: judges behind a network do, now and then.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from hf_itp.checks import check_count, check_number
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning
from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction
from hf_itp.rewards.pending import Begun, Pending
from hf_itp.rewards.resolve import RewardLike, as_reward_function
from hf_itp.rewards.values import or_none
from hf_itp.rewards.wrapped import WrappedReward

Kinds = type[Exception] | tuple[type[Exception], ...]


def retried(reward_model: RewardLike, times: int = 3, wait: float = 1.0, on: Kinds = Exception) -> RewardFunction:
    """
    Return the same reward, asked again when it fails.

    If it still fails, the error of `generate` carries what was drawn ([`~errors.ScoringError`]).

    Args:
        reward_model: Anything that [`as_reward_function`] takes, asynchronous functions among it.
        times (`int`, *optional*, defaults to 3): How often to ask again after the first failure.
        wait (`float`, *optional*, defaults to 1.0): Seconds before it is asked again, twice as many each further time.
        on (`type` or `tuple` of these, *optional*): The exceptions to ask again after; others are raised at once.
            Defaults to all but wrong arguments, which fail every time.

    Raises:
        `ArgumentError`, `ArgumentTypeError`: If an option breaks its rule.

    Examples:

    ```python
    >>> from hf_itp.rewards import retried
    >>> answers = iter([ConnectionError("busy"), [1.0]])
    >>> def judge(prompts, completions, **kwargs):
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):  # which says that it was asked again
    ...     retried(judge, times=2, wait=0.01)(["Why?"], ["Because."])
    tensor([1.])

    ```
    """
    return _RetriedReward(as_reward_function(reward_model), times, wait, on)


class _RetriedReward(WrappedReward):
    """[`retried`] as a reward."""

    def __init__(self, reward: RewardFunction, times: int, wait: float, on: Kinds):
        super().__init__(reward)
        self._times = check_count("times", times, 1, "Pass e.g. times=3, or the reward itself to ask only once.")
        self._wait = check_number("wait", wait, "Pass e.g. wait=1.0.", "at least 0", lambda seconds: seconds >= 0)
        kinds = on if isinstance(on, tuple) else (on,)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise ArgumentTypeError(f"`on` must be a kind of exception or a tuple of these, got {on!r:.80}.")
        self._on = kinds

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> Sequence[float | None] | Awaitable[Any]:
        ask = partial(self._reward.begin, prompts, responses, response_ids, columns)
        waits = self._waits()
        while True:
            try:
                begun = ask()
            except self._on as error:
                time.sleep(self._before_next(error, waits))
                continue
            return (
                _Retrying([begun], partial(self._awaited, ask, waits))
                if inspect.isawaitable(begun)
                else or_none(begun)
            )

    async def _awaited(
        self, ask: Callable[[], Begun], waits: Iterator[float], begun: Sequence[Any]
    ) -> list[float | None]:
        asked = list(begun)
        while True:
            try:
                first = asked.pop() if asked else ask()
                return or_none(await first if inspect.isawaitable(first) else first)
            except self._on as error:
                await asyncio.sleep(self._before_next(error, waits))

    def _waits(self) -> Iterator[float]:
        return (self._wait * 2**turn for turn in range(self._times))

    def _before_next(self, error: Exception, waits: Iterator[float]) -> float:
        """Return the seconds to wait after a failure; raise it if nothing is left to try."""
        wait = None if isinstance(error, (ArgumentError, ArgumentTypeError)) else next(waits, None)
        if wait is None:
            raise error
        warnings.warn(
            f"Reward `{self.name}` failed and is asked again in {wait:g} s: {type(error).__name__}: {error}",
            ItpWarning,
            stacklevel=3,
        )
        return wait


class _Retrying(Pending):
    """Rewards that are asked for again while they are awaited."""

    async def _finished(self) -> Any:
        return await self.finish(list(self.begun))
