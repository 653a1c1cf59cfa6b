"""
Warn if the prompts that a reward sees do not belong to the rows that the policy continues.

Their order may differ, and then the rewards would be for another question.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_itp.errors import ItpWarning
from hf_itp.rewards.base import Prompt


def warn_of_other_rows(
    prompts: Sequence[Prompt], token_prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """
    Warn once per call if a chat's row lacks the text of the user's last message.

    Not checked where nothing can be told: prompts and rows that are not chats, content other than text, templates that
    change the text. What else the row holds (a system prompt, examples, documents) does not matter.

    Args:
        prompts (`list[str]` or `list[list[dict]]`): What the reward sees.
        token_prompts (`list[list[int]]`): The tokens of each row without padding.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
    """
    for row, (prompt, ids) in enumerate(zip(prompts, token_prompts, strict=True)):
        if not isinstance(prompt, str) and _is_another_chat(prompt, ids, tokenizer):
            warnings.warn(
                f"`prompts` must belong to the input, but the user's last text in prompt {row}, "
                f"{_user_text(prompt)[1]!r:.60}, does not occur in row {row}: its responses are judged as answers to "
                "something else. Pass prompts in the order of the rows.",
                ItpWarning,
                stacklevel=3,
            )
            return


def _is_another_chat(chat: list[dict], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    position, text = _user_text(chat)
    if not _squeezed(text) or not getattr(tokenizer, "chat_template", None):
        return False
    try:
        rendered = str(tokenizer.apply_chat_template(chat[: position + 1], tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError, TypeError, KeyError):
        return False  # the policy saw the chat in another form, which this tokenizer does not know
    _, found, end = _squeezed(rendered).rpartition(_squeezed(text))
    row = _squeezed(str(tokenizer.decode(list(ids))))
    if not found or not end or end not in row:
        return False
    # The text as the tokenizer returns it: it may know fewer characters, or no capitals.
    again = str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))
    # A long row may have lost its beginning, and the text's with it.
    shown = row.rpartition(end)[0]
    return not any(one and (one in row or (shown and one.endswith(shown))) for one in map(_squeezed, (text, again)))


def _user_text(chat: list[dict]) -> tuple[int, str]:
    """Return position and text of the user's last message with text; `(-1, "")` where there is none."""
    for position in reversed(range(len(chat))):
        content: Any = chat[position].get("content")
        if chat[position].get("role") != "user":
            continue
        if isinstance(content, (list, tuple)):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            content = next((text for text in reversed(texts) if isinstance(text, str)), None)
        return (position, content) if isinstance(content, str) else (-1, "")
    return -1, ""


def _squeezed(text: str) -> str:
    """Remove what rendering, tokenizing and decoding may change: space, case, forms of a character."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
