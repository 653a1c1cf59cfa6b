"""
Prompts and responses as the token ids a reward model reads: rendered the way it was trained, cut on the left if too
long.

Knows nothing of models. Padding and truncation never go through the tokenizer, whose settings for both are shared
state.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_itp.errors import ArgumentError, ItpWarning, RewardModelError
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.text.rendering import conversation, distinct, fold_system, transcript

_SOME_RESPONSE = "."


class TokenSequence(NamedTuple):
    """
    The tokens of one prompt and response. `removable` marks those that may be cut, `reads` are the positions a model
    that judges steps is read at; equal sequences score equal.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    removable: tuple[bool, ...]
    reads: tuple[int, ...] = ()


class PairEncoder:
    """
    Turns (prompt, response) into tokens, in one of three ways: the tokenizer's chat template, or without one a text
    pair where `pairs` is set, or the response written behind the prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reward model's own tokenizer.
        pairs (`bool`): Whether the model reads a text pair, as encoders do.
        max_length (`int`, *optional*): Tokens kept of a prompt and response together; no limit without it.
        append_eos (`bool`, *optional*, defaults to `False`): Whether to end in the end token where none is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: bool,
        max_length: int | None = None,
        append_eos: bool = False,
    ) -> None:
        if append_eos and tokenizer.eos_token_id is None:
            raise RewardModelError(
                "`append_eos` has to be False for a tokenizer without an end token, but is True. Set "
                "`tokenizer.eos_token` or drop `append_eos`."
            )
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.pairs = pairs
        self.max_length = max_length
        self.append_eos = append_eos

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenSequence]:
        """The tokens of each pair, all at most `max_length` long. One warning counts what had to be cut."""
        sequences = []
        cut_prompts = cut_responses = 0
        for position, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            sequence = self._encode_one(prompt, response)
            if not sequence.ids:
                raise ArgumentError(
                    f"Prompt and response {position} are both empty, so there is nothing to score. Leave the pair out."
                )
            excess = len(sequence.ids) - (self.max_length or len(sequence.ids))
            if excess > 0:
                cut_prompts += 1
                cut_responses += excess > self._num_removable_before_response(sequence, prompt)
                sequence = cut_left(sequence, excess)
            sequences.append(sequence)
        warn_of_cuts(cut_prompts, len(sequences), self.max_length, cut_responses)
        return sequences

    def check(self, prompts: Sequence[Prompt]) -> list[TokenSequence]:
        """
        What each distinct prompt becomes with some response, not cut.

        Raises:
            `ItpError`: What [`encode`] would raise on these prompts.
        """
        prompts = distinct(prompts)
        sequences = [self._encode_one(prompt, _SOME_RESPONSE) for prompt in prompts]
        if self.has_template:
            warn_of_unseen_calls(self.tokenizer, prompts)
        return sequences

    def _encode_one(self, prompt: Prompt, response: str) -> TokenSequence:
        if self.has_template:
            sequence = self._from_template(conversation(prompt, response))
        elif self.pairs:
            sequence = self._from_text(transcript(prompt), response)
        elif isinstance(prompt, str):
            sequence = self._from_text(prompt + response)
        else:
            sequence = self._from_text(transcript(conversation(prompt, response)))
        sequence = self._with_one_bos(sequence)
        eos = self.tokenizer.eos_token_id
        if self.append_eos and sequence.ids[-1:] != (eos,):
            last_type = sequence.type_ids[-1] if sequence.type_ids else 0
            sequence = TokenSequence(
                (*sequence.ids, eos), (*sequence.type_ids, last_type), (*sequence.removable, False)
            )
        return sequence

    def _from_template(self, messages: list[dict[str, Any]]) -> TokenSequence:
        if any(message["role"] == "system" for message in messages) and not self._keeps_system:
            messages = fold_system(messages)
        encoded: Any = from_template(
            self.tokenizer, messages, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}
        )
        ids = tuple(encoded["input_ids"])
        starts = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        return TokenSequence(ids, (0,) * len(ids), tuple(i > 0 or token not in starts for i, token in enumerate(ids)))

    def _from_text(self, *texts: str) -> TokenSequence:
        # As a batch: outside one, tokenizers take an empty second text for none and leave its separator out.
        batch: Any = self.tokenizer(*([text] for text in texts), return_special_tokens_mask=True, verbose=False)
        ids = tuple(batch["input_ids"][0])
        type_ids = tuple(batch["token_type_ids"][0]) if "token_type_ids" in batch else (0,) * len(ids)
        return TokenSequence(ids, type_ids, tuple(not special for special in batch["special_tokens_mask"][0]))

    def _with_one_bos(self, sequence: TokenSequence) -> TokenSequence:
        # A text that was rendered elsewhere already brings the BOS the tokenizer adds, and RMs never saw two.
        bos = self.tokenizer.bos_token_id
        if bos is not None and sequence.ids[:2] == (bos, bos):
            return TokenSequence(sequence.ids[1:], sequence.type_ids[1:], (False, *sequence.removable[2:]))
        return sequence

    @cached_property
    def _keeps_system(self) -> bool:
        """Whether the chat template renders system messages, instead of refusing them or leaving them out."""
        marker = "marker"
        chat = [
            {"role": "system", "content": marker},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(chat, tokenize=False)
        except TemplateError:
            return False
        return marker in rendered

    def _num_removable_before_response(self, sequence: TokenSequence, prompt: Prompt) -> int:
        without_response = self._encode_one(prompt, "").ids
        shared = 0
        while shared < min(len(sequence.ids), len(without_response)) and (
            sequence.ids[shared] == without_response[shared]
        ):
            shared += 1
        return sum(sequence.removable[:shared])


def from_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> Any:
    """
    What the chat template makes of a conversation.

    Raises:
        `RewardModelError`: If it refuses the chat.
    """
    # transformers from 5.24 on leaves fields out that are None. Templates are written for that: others write "None".
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RewardModelError(
            f"The reward model's chat template refuses a chat of the roles {roles}: {error}. Pass `prompts` in "
            "the form it accepts, or set another `tokenizer.chat_template`."
        ) from None


def warn_of_unseen_calls(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> None:
    """Warns where a chat template leaves calls of tools out: responses after different calls are scored alike."""
    for prompt in prompts:
        messages = conversation(prompt, _SOME_RESPONSE)
        if not any(message.get("tool_calls") for message in messages):
            continue
        bare = [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
        if from_template(tokenizer, messages, tokenize=False) == from_template(tokenizer, bare, tokenize=False):
            warnings.warn(
                "The reward model's chat template leaves out `tool_calls`, so the reward does not see what was "
                "called. Set a `tokenizer.chat_template` that writes them.",
                ItpWarning,
                stacklevel=5,
            )
            return


def cut_left(sequence: TokenSequence, excess: int) -> TokenSequence:
    """The sequence without its first `excess` removable tokens."""
    kept = []
    for position, removable in enumerate(sequence.removable):
        if removable and excess > 0:
            excess -= 1
        else:
            kept.append(position)
    # Only where special tokens alone are too many is anything left to remove here.
    kept = kept[excess:]
    place = {position: index for index, position in enumerate(kept)}
    return TokenSequence(
        tuple(sequence.ids[position] for position in kept),
        tuple(sequence.type_ids[position] for position in kept),
        tuple(sequence.removable[position] for position in kept),
        tuple(place[position] for position in sequence.reads if position in place),
    )


def warn_of_cuts(cut_prompts: int, count: int, max_length: int | None, cut_responses: int) -> None:
    """One warning for all that had to be cut, none where nothing had."""
    if not cut_prompts:
        return
    also = f", and the response itself in {cut_responses} of them" if cut_responses else ""
    warnings.warn(
        f"{cut_prompts} of {count} prompts were cut on the left to fit the reward model's {max_length} tokens{also}, "
        "so their rewards ignore the beginning. Raise `max_length` or pass shorter prompts.",
        ItpWarning,
        stacklevel=5,
    )
