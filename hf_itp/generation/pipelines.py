"""
Give each row of `transformers.pipeline("text-generation")` its own prompt and columns.

A pipeline calls `generate` with a few inputs at a time, in order, and with the same keywords each time. So what
belongs to single inputs is wrapped in [`OfInputs`], of which each call takes the next entries. Imports neither torch
nor transformers until a strategy is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from hf_itp.errors import ArgumentError

PIPELINE_MODULE = "transformers.pipelines.text_generation"


class OfInputs(list):
    """
    Entries of all inputs of a pipeline. [`take`] returns those of the inputs it has come to.

    Args:
        name (`str`): The keyword, for the message.
        entries (`list`): One entry per input.
    """

    def __init__(self, name: str, entries: list):
        super().__init__(entries)
        self._name, self._taken = name, 0

    def take(self, count: int) -> list:
        """
        Return the next `count` entries.

        Raises:
            `ArgumentError`: If there are fewer left.
        """
        if self._taken + count > len(self):
            raise _unequal(self._name, f"more than {len(self)}", len(self))
        self._taken += count
        return self[self._taken - count : self._taken]


class OfEveryInput(OfInputs):
    """One entry, the same for all inputs."""

    def take(self, count: int) -> list:
        return [self[0]] * count


def of_rows(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the keywords of one call of `generate` with `count` rows, with their entries out of [`OfInputs`]."""
    taken: dict[str, Any] = {
        name: value.take(count) for name, value in arguments.items() if isinstance(value, OfInputs)
    }
    columns = arguments.get("reward_kwargs")
    if isinstance(columns, Mapping):
        taken["reward_kwargs"] = {
            name: column.take(count) if isinstance(column, OfInputs) else column for name, column in columns.items()
        }
    return {**arguments, **taken}


def wrap_pipeline(kind: Any) -> None:
    """Wrap the call of a pipeline class, once."""
    if not hasattr(kind.__call__, "_hf_itp_original"):
        kind.__call__ = _with_prompts_of_inputs(kind.__call__)


def unwrap_pipeline(kind: Any) -> None:
    """Restore the call of a pipeline class, if nobody has wrapped it since."""
    call = kind.__call__
    # A wrapper around ours has its attributes too.
    if getattr(call, "_hf_itp_wrapper", None) == id(call):
        kind.__call__ = call._hf_itp_original


def _with_prompts_of_inputs(original: Callable) -> Callable:
    @functools.wraps(original)
    def __call__(self: Any, text_inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("strategy") is not None:
            from hf_itp.checks import as_list

            count = _num_inputs(text_inputs)
            if (prompts := as_list(kwargs.get("prompts"))) is not None:
                kwargs["prompts"] = _of_inputs("prompts", prompts, count)
            context = {name: kwargs[name] for name in ("tools", "documents") if kwargs.get(name) is not None}
            if context:
                from hf_itp.policies.chat_template import check_template_takes, template_arguments

                context = template_arguments(**context)
                chats = _chats(text_inputs)
                check_template_takes(self.tokenizer, chats, [context] * len(chats))
            if isinstance(columns := kwargs.get("reward_kwargs"), Mapping):
                kwargs["reward_kwargs"] = {
                    name: column
                    if (entries := as_list(column)) is None
                    else _of_inputs(f"reward_kwargs[{name!r}]", entries, count)
                    for name, column in columns.items()
                }
            if context:
                seen = {name: OfEveryInput(name, [value]) for name, value in context.items()}
                kwargs["reward_kwargs"] = {**(kwargs.get("reward_kwargs") or {}), **seen}
        return original(self, text_inputs, **kwargs)

    __call__._hf_itp_original = original  # type: ignore[attr-defined]
    __call__._hf_itp_wrapper = id(__call__)  # type: ignore[attr-defined]
    return __call__


def _of_inputs(name: str, entries: list, count: int | None) -> OfInputs:
    if count is not None and len(entries) != count:
        raise _unequal(name, count, len(entries))
    return OfInputs(name, entries)


def _num_inputs(text_inputs: Any) -> int | None:
    """Return the number of inputs; `None` for a stream of unknown length. A text or a chat is one."""
    if isinstance(text_inputs, str) or hasattr(text_inputs, "messages"):
        return 1
    if not hasattr(text_inputs, "__len__"):
        return None
    is_chat = isinstance(text_inputs, (list, tuple)) and len(text_inputs) > 0 and isinstance(text_inputs[0], Mapping)
    return 1 if is_chat else len(text_inputs)


def _chats(text_inputs: Any) -> list:
    """Return the chats among the inputs; none of a stream, which can be read only once."""
    if hasattr(text_inputs, "messages"):
        return [text_inputs.messages]
    if not isinstance(text_inputs, (list, tuple)) or not text_inputs:
        return [text_inputs] if isinstance(text_inputs, str) else []
    return [list(text_inputs)] if isinstance(text_inputs[0], Mapping) else list(text_inputs)


def _unequal(name: str, expected: object, count: int) -> ArgumentError:
    return ArgumentError(
        f"`{name}` must hold one entry per input of the pipeline ({expected}), got {count}. Pass a list as long as "
        "the list of inputs, in its order."
    )
