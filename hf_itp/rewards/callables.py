"""
Rewards computed by a plain function with the signature TRL's trainers use.

Knows nothing of models.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_itp.errors import ArgumentTypeError, RewardError
from hf_itp.rewards.base import Prompt, RewardFunction
from hf_itp.rewards.rendering import as_messages


class CallableReward(RewardFunction):
    """
    Scores with `function(prompts=..., completions=..., completion_ids=..., **kwargs) -> list[float]`, as TRL calls
    it: text prompts come with text completions, chats with completions of the form
    `[{"role": "assistant", "content": ...}]`.

    `completion_ids`, one list of token ids per response, is passed where it is known and the function takes it. No
    data set stands behind the prompts, so there are no further columns: bind them with `functools.partial`.

    Args:
        function (`Callable`): The reward function; its `__name__` is the reward's name.

    Raises:
        `ArgumentTypeError`: If `function` is asynchronous, does not take `prompts` and `completions` by name, or needs
            an argument nobody passes.

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
                f"A reward function has to be callable, but is a {type(function).__name__}. Pass a function "
                "f(prompts, completions, **kwargs) that returns one float per completion."
            )
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise ArgumentTypeError(
                f"Reward function `{self.name}` has to be synchronous, but is a coroutine function. Wrap it in a "
                "function that calls asyncio.run(...)."
            )
        self.function = function
        self._takes_ids = _takes_completion_ids(function, self.name)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: Sequence[torch.Tensor] | None = None,
        **columns: Sequence[Any],
    ) -> torch.Tensor | Sequence[float]:
        arguments: dict[str, Any] = {
            # Copies: reward functions written for TRL may pop from them.
            "prompts": [prompt if isinstance(prompt, str) else as_messages(prompt) for prompt in prompts],
            "completions": [
                response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
                for prompt, response in zip(prompts, responses, strict=True)
            ],
        }
        if self._takes_ids and response_ids is not None:
            arguments["completion_ids"] = [ids.tolist() for ids in response_ids]
        arguments |= {name: list(column) for name, column in columns.items() if self._takes(name)}
        rewards = self.function(**arguments)
        if inspect.isawaitable(rewards):
            if inspect.iscoroutine(rewards):
                rewards.close()
            raise RewardError(
                f"Reward function `{self.name}` has to return floats, but returned an awaitable. Wrap it in a "
                "function that calls asyncio.run(...)."
            )
        return rewards

    def check(self, prompts: Sequence[Prompt], **columns: Sequence[Any]) -> None:
        missing = [name for name in _required(self.function) if name not in columns]
        if missing:
            raise ArgumentTypeError(
                f"Reward function `{self.name}` needs `{missing[0]}`, but only `prompts`, `completions`, "
                f"`completion_ids` and the columns {', '.join(columns) or 'of no data'} are passed. Give it a "
                "default, add the column, or bind it with functools.partial."
            )

    def _takes(self, name: str) -> bool:
        parameters = _parameters(self.function)
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _parameters(function: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def _required(function: Callable[..., Any]) -> list[str]:
    passed = {"prompts", "completions", "completion_ids"}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        p.name
        for p in _parameters(function).values()
        if p.default is p.empty and p.kind not in kinds and p.name not in passed
    ]


def _name(function: object) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _takes_completion_ids(function: Callable[..., Any], name: str) -> bool:
    """Whether the function accepts `completion_ids`, once it is known to accept what is always passed."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        # Compiled functions may have no signature to read; they get what every reward function takes.
        return False
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    missing = [] if takes_any else [argument for argument in ("prompts", "completions") if argument not in by_name]
    if missing:
        raise ArgumentTypeError(
            f"Reward function `{name}` has to take `prompts` and `completions` by name, but takes no "
            f"`{'` and no `'.join(missing)}`. Define it as f(prompts, completions, **kwargs)."
        )
    return takes_any or "completion_ids" in by_name
