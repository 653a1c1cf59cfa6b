"""
Turn prompts and responses into the tokens a process reward model reads, with the position to read after each step.

Each function is one way such models were trained. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_itp.errors import RewardModelError
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.text.context import Context
from hf_itp.rewards.text.encoding import TokenSequence, from_template
from hf_itp.rewards.text.rendering import as_messages, conversation, text_of, transcript


def split_steps(response: str, separator: str) -> list[str]:
    r"""
    Split a response into its steps; one that is empty, or only separators, is a single step.

    Examples:

    ```python
    >>> split_steps("Mix.\n\nBake.\n\n", "\n\n")
    ['Mix.', 'Bake.']

    ```
    """
    return [step for step in response.split(separator) if step.strip()] or [response]


def marked(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    steps: Sequence[str],
    mark: str,
    context: Context | None = None,
    between: str = "",
) -> TokenSequence:
    """
    Make one text with a mark after each step, read at the marks. The chat template renders it; without one it is the
    prompt, a space and the steps.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reward model's.
        prompt (`str` or `list[dict]`): Text or chat.
        steps (`Sequence[str]`): The steps of the response.
        mark (`str`): Written after each step.
        context (`dict`, *optional*): Tools and documents, for the chat template.
        between (`str`, *optional*, defaults to `""`): Written between a mark and the next step.

    Raises:
        `RewardModelError`: If no token ends where a mark does.
    """
    # A mark inside the response would be one more place to read at.
    body = between.join(step.replace(mark, "") + mark for step in steps)
    if tokenizer.chat_template:
        text = str(from_template(tokenizer, conversation(prompt, body), tokenize=False, **(context or {})))
    else:
        question = transcript(prompt)
        space = "" if not question or question[-1].isspace() or body[:1].isspace() else " "
        text = question + space + body
    start = text.rfind(body)
    if start < 0:
        raise _unreadable(mark, "is changed by the chat template")
    ends, end = [], start
    for step in steps:
        end += len(step.replace(mark, "")) + len(mark)
        ends.append(end)
        end += len(between)
    return _read_at(tokenizer, text, ends, mark)


def concatenated(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, steps: Sequence[str], mark: str) -> TokenSequence:
    """
    Join the tokens of prompt, step, mark, step, mark, ..., without a template, read at the last token of each mark, as
    TRL's `PRMTrainer` does.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [*bos, *_ids(tokenizer, transcript(prompt))]
    reads = []
    for step in steps:
        ids += [*_ids(tokenizer, step), *_ids(tokenizer, mark)]
        reads.append(len(ids) - 1)
    removable = tuple(position >= len(bos) for position in range(len(ids)))
    return TokenSequence(tuple(ids), (0,) * len(ids), removable, tuple(reads))


def answered(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    steps: Sequence[str],
    answer: str,
    answer_id: int,
    context: Context | None = None,
) -> TokenSequence:
    """
    Make a chat in which each step is a user's turn and `answer` the assistant's, read at the token before each answer,
    as RLHFlow's models do.

    Raises:
        `RewardModelError`: If the tokenizer has no chat template, or if the template changes a turn once another
            follows.
    """
    if not tokenizer.chat_template:
        raise RewardModelError(
            "A process reward model that answers each step in a turn must have a chat template, got a tokenizer "
            "without one. Set `tokenizer.chat_template`, or pass `step_token` for one that answers at a token."
        )
    messages = as_messages(prompt)
    last = len(messages) - 1
    begun = text_of(messages.pop(), last) if messages[-1]["role"] == "assistant" else ""
    texts = [begun + steps[0].strip(), *(step.strip() for step in steps[1:])]
    if messages and messages[-1]["role"] == "user":
        texts[0] = f"{text_of(messages.pop(), len(messages))} {texts[0]}"
    ids: tuple[int, ...] = ()
    reads: list[int] = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        encoded: Any = from_template(tokenizer, messages, tokenize=True, return_dict=True, **(context or {}))
        before, ids = ids, tuple(encoded["input_ids"])
        place = max((position for position, token in enumerate(ids) if token == answer_id), default=0)
        if place == 0 or before[: reads[-1] + 2 if reads else 0] != ids[: reads[-1] + 2 if reads else 0]:
            raise _unreadable(answer, "is changed by the chat template")
        reads.append(place - 1)
    removable = tuple(position > 0 or ids[0] != tokenizer.bos_token_id for position in range(len(ids)))
    return TokenSequence(ids, (0,) * len(ids), removable, tuple(reads))


def _read_at(tokenizer: PreTrainedTokenizerBase, text: str, ends: Sequence[int], mark: str) -> TokenSequence:
    if not tokenizer.is_fast:
        raise RewardModelError(
            f"The tokenizer of a process reward model must report the offsets of its tokens in the text, got a slow "
            f"`{type(tokenizer).__name__}`. Pass a fast `tokenizer`."
        )
    # A template has already written the special tokens.
    batch: Any = tokenizer(
        [text],
        add_special_tokens=not tokenizer.chat_template,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, spans = tuple(batch["input_ids"][0]), batch["offset_mapping"][0]
    reads = [max((place for place, (left, right) in enumerate(spans) if left < min(right, end))) for end in ends]
    if any(spans[place][1] != end for place, end in zip(reads, ends, strict=True)):
        raise _unreadable(mark, "is one token with what follows it")
    removable = [not special for special in batch["special_tokens_mask"][0]]
    if tokenizer.chat_template:
        removable = [place > 0 or token != tokenizer.bos_token_id for place, token in enumerate(ids)]
    return TokenSequence(ids, (0,) * len(ids), tuple(removable), tuple(reads))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _unreadable(mark: str, why: str) -> RewardModelError:
    return RewardModelError(
        f"A process reward model must be read after each step, got {mark!r}, which {why}. Take "
        "`step_token` and `separator` from the model's card, spaces included."
    )
