"""
What a reward reads of a response: all of it, or its final part, without the thinking part of a reasoning model.

The thinking part is found by the first that is known: the `response_template` of the tokenizer (transformers' own
description of a model's responses), markers in [`MARKERS`] that its vocabulary or chat template holds, the text its
chat template writes around `reasoning_content`. Knows nothing of rewards.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from hf_itp.checks import check_choice
from hf_itp.errors import ArgumentError, ItpWarning
from hf_itp.sampling.text import ResponseReader

REWARD_VIEWS = ("full", "final")
"""What a reward may read of a response."""

MARKERS = {
    "<|channel|>analysis<|message|>": "<|end|>",  # gpt-oss
    "<|channel>thought": "<channel|>",  # Gemma 4
    "[THINK]": "[/THINK]",  # Magistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<think>": "</think>",  # DeepSeek-R1, Qwen3 and most others
}
"""How thinking begins and ends in the responses of known models."""

# A message of the harmony format stands in a channel of its own; what is between messages is no text of a response.
_IN_CHANNELS = {
    "<|channel|>analysis<|message|>": {
        "content": {
            "open_pattern": r"<\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|>",
            "close_pattern": r"<\|(?:return|end)\|>",
        },
        "tool_calls": {
            "open_pattern": r"(?:to=\S+\s*)?<\|channel\|>commentary[^<]*(?:<\|constrain\|>\w+)?<\|message\|>",
            "close_pattern": r"<\|(?:call|end)\|>",
            "repeats": True,
        },
    }
}
_THINKING = ("reasoning_content", "thinking", "reasoning")
_TOLD = "declare it in `tokenizer.response_template`"


@dataclass(frozen=True)
class Thinking:
    """
    How thinking is marked in the responses of a policy. Make one with [`Thinking.of`].

    Args:
        template (`ResponseTemplate`): The fields of a response, the thinking among them.
        openings (`re.Pattern`): An opening marker at the end of a prompt: the template has begun the thinking.
    """

    template: ResponseTemplate
    openings: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Thinking:
        """
        Return how thinking is marked. Warn if nothing says so: then it is looked for between `<think>` and `</think>`.

        Raises:
            `ArgumentError`: If the tokenizer's `response_template` is none.
        """
        declared = getattr(tokenizer, "response_template", None)
        if declared is not None:
            try:
                template = load_response_template(declared)
            except (ValueError, TypeError, KeyError) as error:
                raise ArgumentError(
                    f"`tokenizer.response_template` must be valid with reward_view='final', got: {error}. Correct it, "
                    "or remove it to find thinking by its markers."
                ) from error
            if not set(_THINKING).isdisjoint(template.fields):
                return cls(template, _at_the_end(MARKERS))
        begins, ends = _known_markers(tokenizer) or _markers_shown(tokenizer) or (None, None)
        if begins is None or ends is None:
            begins, ends = "<think>", MARKERS["<think>"]
            warnings.warn(
                "`reward_view` is 'final', but neither the policy's tokenizer nor its chat template says how thinking "
                f"is marked: only what stands between {begins} and {ends} is left out. If it is marked otherwise, "
                f"{_TOLD}.",
                ItpWarning,
                stacklevel=2,
            )
        fields = {"thinking": {"open": begins, "close": ends}, **_IN_CHANNELS.get(begins, {"content": {}})}
        # Of the prompt only an opening marker at its end belongs to the response.
        anchor = rf"(?={re.escape(begins)}\s*\Z)"
        return cls(load_response_template({"start_anchor_pattern": anchor, "fields": fields}), _at_the_end([begins]))

    def final_spans(self, prompt: str, response: str) -> list[tuple[int, int]] | None:
        """
        Return where in a response its final part is, piece by piece; `None` if it ends while thinking.

        Args:
            prompt, response (`str`): Texts with special tokens.
        """
        anchors = list(self.template.start_anchor_re.finditer(prompt))
        before = prompt[anchors[-1].end() :] if anchors else ""
        text = before + response
        thoughts, messages, complete = self._regions(text)
        in_channels = all(field.open_re is not None for field in self.template.fields.values())
        end = None if in_channels else self._first_closing(text)
        if end is not None and (not thoughts or end <= thoughts[0][0]):
            thoughts = [(0, end), *thoughts]  # begun where nobody saw it
        elif not thoughts and self.openings.search(prompt):
            complete = False  # begun in the prompt, and never ended
        if not complete:
            return None
        if not thoughts and not messages:
            return [(0, len(response))]
        if not in_channels:
            edges = [edge for start, end in thoughts for edge in (start, _after_blank_lines(text, end))]
            spans = list(zip([0, *edges[1::2]], [*edges[::2], len(text)], strict=True))
        else:
            spans = messages
        return [(max(0, start - len(before)), end - len(before)) for start, end in spans if end > len(before)]

    def _regions(self, text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]], bool]:
        """Return where thinking and other marked fields stand, and whether the last thinking ends."""
        thoughts: list[tuple[int, int]] = []
        messages: list[tuple[int, int]] = []
        at = 0
        while True:
            opened = [
                (match.start(), -match.end(), name, match)
                for name, field in self.template.fields.items()
                if field.open_re is not None and (match := field.open_re.search(text, at)) is not None
            ]
            if not opened:
                return thoughts, messages, True
            _, _, name, match = min(opened, key=lambda found: found[:3])
            close_re = self.template.fields[name].close_re
            closing = None if close_re is None else close_re.search(text, match.end())
            if name in _THINKING:
                if closing is None:
                    return thoughts, messages, False
                thoughts.append((match.start(), closing.end()))
            elif name == "content":
                messages.append((match.end(), len(text) if closing is None else closing.start()))
            else:  # such as a tool call, whose markers say what it is
                messages.append((match.start(), len(text) if closing is None else closing.end()))
            if closing is None:
                return thoughts, messages, True
            at = max(closing.end(), match.start() + 1)

    def _first_closing(self, text: str) -> int | None:
        fields = [field for name, field in self.template.fields.items() if name in _THINKING and field.close_re]
        return min((m.end() for field in fields if (m := field.close_re.search(text)) is not None), default=None)


class RewardReader:
    """
    Reader of the responses to one prompt as the reward sees them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt_ids (`Sequence[int]`): The prompt's tokens; for an encoder-decoder those its decoder begins with.
        thinking ([`Thinking`], *optional*): Leave this out of the responses. By default they are read in full.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int], thinking: Thinking | None = None
    ):
        self._tokenizer, self._prompt_ids, self._thinking = tokenizer, list(prompt_ids), thinking
        self._full = ResponseReader(tokenizer, self._prompt_ids)
        if thinking is not None:
            self._prompt = str(tokenizer.decode(self._prompt_ids))
            self._with_special = ResponseReader(tokenizer, self._prompt_ids, special=True)

    def full(self, response_ids: Iterable[int]) -> str:
        """Return the whole text of one response without special tokens, whatever the reward sees."""
        return self._full(response_ids)

    def __call__(self, response_ids: Iterable[int]) -> str | None:
        """Return the text of one response without special tokens, `None` if it has no final part."""
        ids = [int(token) for token in response_ids]
        if self._thinking is None:
            return self._full(ids)
        whole = self._with_special(ids)
        spans = self._thinking.final_spans(self._prompt, whole)
        if spans is None:
            return None
        if spans == [(0, len(whole))]:
            return self._full(ids)
        text = "".join(self._piece(ids, whole, *span) for span in spans)
        return text if text.strip() else None

    def _piece(self, ids: list[int], whole: str, start: int, end: int) -> str:
        """Return a piece of the text, of which special tokens are left out."""
        first = _bisected(len(ids), lambda count: len(self._with_special(ids[:count])) >= start)
        after = _bisected(len(ids), lambda count: len(self._with_special(ids[:count])) > end)
        last = len(ids) if end == len(whole) else after - 1
        if first > last:  # within one token
            return whole[start:end]
        left, right = (len(self._with_special(ids[:count])) for count in (first, last))
        inner = ResponseReader(self._tokenizer, [*self._prompt_ids, *ids[:first]])(ids[first:last])
        return whole[start:left] + inner + whole[right:end]


def reward_readers(
    tokenizer: PreTrainedTokenizerBase, token_prompts: Sequence[Sequence[int]], reward_view: str = "full"
) -> list[RewardReader]:
    """Return one [`RewardReader`] per prompt."""
    thinking = None if check_reward_view(reward_view) == "full" else Thinking.of(tokenizer)
    return [RewardReader(tokenizer, row, thinking) for row in token_prompts]


def rewards_where_said(texts: Sequence[str | None], score: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
    """
    Return the rewards `(n,)` of responses, NaN ("no reward") for those without a final part.

    Args:
        texts (`list[str]`): What the reward reads of each response, `None` where there is nothing.
        score (`Callable`): Returns the rewards of the responses at these places.
    """
    said = [place for place, text in enumerate(texts) if text is not None]
    rewards = torch.full((len(texts),), math.nan, dtype=torch.float32)
    if said:
        rewards[said] = score(said)
    return rewards


def check_reward_view(reward_view: str) -> str:
    """Return the view, if there is one of that name."""
    check_choice("reward_view", reward_view, REWARD_VIEWS, "Pass 'final' to leave out a reasoning model's thinking.")
    return reward_view


def _known_markers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    template = tokenizer.chat_template
    text = "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template or "")
    for pair in MARKERS.items():
        tokens = [token for marker in pair for token in re.findall(r"<[^<>]+>|\[[^\[\]]+\]", marker)]
        if all(_is_token(tokenizer, token) for token in tokens) or all(marker in text for marker in pair):
            return pair
    return None


def _is_token(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    known = tokenizer.convert_tokens_to_ids(token)
    return known is not None and known != tokenizer.unk_token_id


def _markers_shown(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return what the chat template writes before and after the thinking of an assistant's message."""
    if not tokenizer.chat_template:
        return None
    question = {"role": "user", "content": "Question"}
    for field in _THINKING:
        message = {"role": "assistant", field: "ThinkingText", "content": "FinalText"}
        try:
            begun = str(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
            shown = str(tokenizer.apply_chat_template([question, message], tokenize=False))
        except Exception:  # a template may raise anything
            continue
        before, _, rest = shown.partition("ThinkingText")
        between, said, _ = rest.partition("FinalText")
        opening, closing = before.removeprefix(begun).split(), between.split()
        if said and opening and closing:
            return opening[-1], closing[0]
    return None


def _at_the_end(openings: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(map(re.escape, openings))})\s*\Z")


def _after_blank_lines(text: str, position: int) -> int:
    match = re.compile(r"(?:[^\S\n]*\n)*").match(text, position)
    return position if match is None else match.end()


def _bisected(count: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest number up to `count` from which on `holds` is true; `count + 1` if it is never."""
    low, high = 0, count + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
