"""
Rewards computed by a plain function with the signature TRL's trainers use.

Knows nothing of models.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from hf_itp.errors import ArgumentTypeError, RewardError
from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction, accepts, parameters_of
from hf_itp.rewards.text.rendering import copied


class CallableReward(RewardFunction):
    """
    Score with `function(prompts=..., completions=..., completion_ids=..., **kwargs) -> list[float]`, called as TRL
    does: with text completions for text prompts, else with completions `[{"role": "assistant", "content": ...}]`.

    `completion_ids`, one list of token ids per response, and the columns of the data, one entry per response, are
    passed if they are known and the function takes them, by name or as `**kwargs`. [`check`] raises if a column that
    the function needs is missing.

    The function gets its own copy of every chat, with all fields of the messages.

    Args:
        function (`Callable`): The reward function; its `__name__` is the reward's name.

    Raises:
        `ArgumentTypeError`: If `function` is asynchronous or does not take `prompts` and `completions` by name.

    Examples:

    ```python
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> CallableReward(brevity)(["Why?", "Why?"], ["Because.", "No idea at all."])
    tensor([ -8., -15.])

    ```
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = _name(function)
        if not callable(function):
            raise ArgumentTypeError(
                f"A reward function must be callable, got a {type(function).__name__}. Pass a function "
                "f(prompts, completions, **kwargs) that returns one float per completion."
            )
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise ArgumentTypeError(
                f"Reward function `{self.name}` must be synchronous, got a coroutine function. Wrap it in a "
                "function that calls asyncio.run(...)."
            )
        self.function = function
        _check_takes_pairs(function, self.name)

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> torch.Tensor | Sequence[float]:
        arguments: dict[str, Any] = {
            # Copies: reward functions written for TRL may pop from them.
            "prompts": [copied(prompt) for prompt in prompts],
            "completions": [
                response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
                for prompt, response in zip(prompts, responses, strict=True)
            ],
        }
        if response_ids is not None and self.takes("completion_ids"):
            arguments["completion_ids"] = [ids.tolist() for ids in response_ids]
        arguments |= {name: column for name, column in columns.items() if self.takes(name)}
        self._check_complete(arguments)
        rewards = self.function(**arguments)
        if inspect.isawaitable(rewards):
            if inspect.iscoroutine(rewards):
                rewards.close()
            raise RewardError(
                f"Reward function `{self.name}` must return floats, got an awaitable. Wrap it in a "
                "function that calls asyncio.run(...)."
            )
        return rewards

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        self._check_complete({"prompts", "completions", "completion_ids", *columns})

    def takes(self, column: str) -> bool:
        return accepts(self.function, column)

    def _check_complete(self, passed: Iterable[str]) -> None:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in parameters_of(self.function) or []:
            needed = parameter.default is parameter.empty and parameter.kind not in kinds
            if needed and parameter.name not in passed:
                raise ArgumentTypeError(
                    f"Reward function `{self.name}` needs `{parameter.name}`, which is not passed. Pass it to "
                    f"`generate` as reward_kwargs={{{parameter.name!r}: [...]}} with one entry per prompt, make it a "
                    "column of the data set, give it a default or bind it with functools.partial."
                )


def _name(function: object) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _check_takes_pairs(function: Callable[..., Any], name: str) -> None:
    # A compiled function may have no signature; it gets only what every reward function takes.
    if parameters_of(function) is None:
        return
    missing = [argument for argument in ("prompts", "completions") if not accepts(function, argument)]
    if missing:
        raise ArgumentTypeError(
            f"Reward function `{name}` must take `prompts` and `completions` by name, got no "
            f"`{'` and no `'.join(missing)}`. Define it as f(prompts, completions, **kwargs)."
        )
