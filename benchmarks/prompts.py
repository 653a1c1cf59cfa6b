"""
Real text of a given length, the same on every machine with the same Python: questions to an assistant, and pages of
Python's documentation to explain.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pydoc_data.topics import topics

from transformers import PreTrainedTokenizerBase

Chat = list[dict[str, str]]

_PAGES = (
    "typesseq",
    "debugger",
    "string-methods",
    "attribute-access",
    "assignment",
    "comparisons",
    "execmodel",
    "try",
)
_TASK = "Explain the following page of documentation to a beginner, in your own words.\n\n"


def chats(tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> list[Chat]:
    """Return one chat per length in tokens, template included. Only a bare question may be longer."""
    lines = files("hf_itp.cli").joinpath("demo_prompts.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line)["prompt"] for line in lines]
    return [
        _chat(tokenizer, questions[index % len(questions)], topics[_PAGES[index % len(_PAGES)]], length)
        for index, length in enumerate(lengths)
    ]


def passages(tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> list[str]:
    """Return consecutive passages of documentation of these lengths in tokens."""
    ids = tokenizer("".join(topics.values())[: 12 * sum(lengths)], add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [
        tokenizer.decode(ids[end - length : end], skip_special_tokens=True)
        for end, length in zip(ends, lengths, strict=True)
    ]


def _chat(tokenizer: PreTrainedTokenizerBase, question: str, page: str, length: int) -> Chat:
    words = page.split(" ")
    low, high = 0, min(len(words), length)
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        if _num_tokens(tokenizer, _user(_TASK + " ".join(words[:middle]))) <= length:
            low = middle
        else:
            high = middle - 1
    # A few words of a page are nothing to explain.
    return _user(_TASK + " ".join(words[:low])) if low >= 16 else _user(question)


def _user(content: str) -> Chat:
    return [{"role": "user", "content": content}]


def _num_tokens(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> int:
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
