"""
Prompts and responses as the token ids a reward model reads: rendered the way it was trained, cut on the left if too
long.

The tokenizer never pads or truncates: its settings for both are shared state.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.checks import check_count
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning, RewardModelError
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.text.context import Context
from hf_itp.rewards.text.rendering import conversation, fold_system, transcript

_SOME_RESPONSE = "."


class TokenSequence(NamedTuple):
    """
    The tokens of one prompt and response. `removable` marks those that may be cut; `reads` are the positions at which
    a process reward model is read. Equal sequences have equal rewards.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    removable: tuple[bool, ...]
    reads: tuple[int, ...] = ()


class PairEncoder:
    """
    Make tokens of prompt and response by the tokenizer's chat template. Without one they become a text pair if
    `pairs` is set, else the prompt followed by the response.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reward model's own tokenizer.
        pairs (`bool`): Whether the model reads a text pair, as encoders do.
        max_length (`int`, *optional*): The most tokens of prompt and response together; no limit without it.
        append_eos (`bool`, *optional*, defaults to `False`): Whether to append a missing end token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pairs: bool, max_length: int | None = None, append_eos: bool = False
    ) -> None:
        if append_eos and tokenizer.eos_token_id is None:
            raise RewardModelError(
                "`append_eos` must be False for a tokenizer without an end token, got True. Set "
                "`tokenizer.eos_token` or drop `append_eos`."
            )
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.pairs = pairs
        self.max_length = max_length
        self.append_eos = append_eos

    def encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str], contexts: Sequence[Context] | None = None
    ) -> list[TokenSequence]:
        """
        Return the tokens of each pair, at most `max_length` long. One warning counts what was cut.

        Args:
            contexts (`list[dict]`, *optional*): The tools and documents of each pair, for the chat template.
        """
        sequences = []
        cut_prompts = cut_responses = 0
        contexts = [{}] * len(prompts) if contexts is None else contexts
        for position, (prompt, response, context) in enumerate(zip(prompts, responses, contexts, strict=True)):
            sequence = self._encode_one(prompt, response, context)
            if not sequence.ids:
                raise ArgumentError(
                    f"Prompt or response {position} must hold text, got two empty ones. Leave the pair out."
                )
            excess = len(sequence.ids) - (self.max_length or len(sequence.ids))
            if excess > 0:
                cut_prompts += 1
                cut_responses += excess > self._num_removable_before_response(sequence, prompt, context)
                sequence = cut_left(sequence, excess)
            sequences.append(sequence)
        warn_of_cuts(cut_prompts, len(sequences), self.max_length, cut_responses)
        return sequences

    def check(self, prompts: Sequence[Prompt], contexts: Sequence[Context] | None = None) -> list[TokenSequence]:
        """
        Return the tokens of each distinct prompt with some response, not cut.

        Raises:
            `ItpError`: As [`encode`] would on these prompts.
        """
        pairs = distinct_pairs(prompts, contexts)
        sequences = [self._encode_one(prompt, _SOME_RESPONSE, context) for prompt, context in pairs]
        warn_of_unseen(self.tokenizer, pairs)
        return sequences

    def _encode_one(self, prompt: Prompt, response: str, context: Context | None = None) -> TokenSequence:
        if self.has_template:
            sequence = self._from_template(conversation(prompt, response), context or {})
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

    def _from_template(self, messages: list[dict[str, Any]], context: Context) -> TokenSequence:
        if any(message["role"] == "system" for message in messages) and not self._keeps_system:
            messages = fold_system(messages)
        encoded: Any = from_template(
            self.tokenizer, messages, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}, **context
        )
        ids = tuple(encoded["input_ids"])
        starts = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        return TokenSequence(ids, (0,) * len(ids), tuple(i > 0 or token not in starts for i, token in enumerate(ids)))

    def _from_text(self, *texts: str) -> TokenSequence:
        # As a batch: outside one, tokenizers ignore an empty second text and leave out its separator.
        batch: Any = self.tokenizer(*([text] for text in texts), return_special_tokens_mask=True, verbose=False)
        ids = tuple(batch["input_ids"][0])
        type_ids = tuple(batch["token_type_ids"][0]) if "token_type_ids" in batch else (0,) * len(ids)
        return TokenSequence(ids, type_ids, tuple(not special for special in batch["special_tokens_mask"][0]))

    def _with_one_bos(self, sequence: TokenSequence) -> TokenSequence:
        # A text that was rendered elsewhere already has the BOS that the tokenizer adds, and models never saw two.
        bos = self.tokenizer.bos_token_id
        if bos is not None and sequence.ids[:2] == (bos, bos):
            return TokenSequence(sequence.ids[1:], sequence.type_ids[1:], (False, *sequence.removable[2:]))
        return sequence

    @cached_property
    def _keeps_system(self) -> bool:
        """Whether the chat template renders system messages, rather than refuse or drop them."""
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

    def _num_removable_before_response(self, sequence: TokenSequence, prompt: Prompt, context: Context) -> int:
        without_response = self._encode_one(prompt, "", context).ids
        shared = 0
        while shared < min(len(sequence.ids), len(without_response)) and (
            sequence.ids[shared] == without_response[shared]
        ):
            shared += 1
        return sum(sequence.removable[:shared])


def from_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> Any:
    """
    Apply the chat template to a conversation.

    Raises:
        `RewardModelError`: If the template refuses the chat.
    """
    # As transformers does from 5.24 on: templates expect fields to be absent, and would write "None".
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RewardModelError(
            f"The reward model's chat template refuses a chat of the roles {roles}: {error}. Pass `prompts` in "
            "the form it accepts, or set another `tokenizer.chat_template`."
        ) from None


def distinct_pairs(
    prompts: Sequence[Prompt], contexts: Sequence[Context] | None = None
) -> list[tuple[Prompt, Context]]:
    """Return each prompt with its context once."""
    pairs = zip(prompts, [{}] * len(prompts) if contexts is None else contexts, strict=True)
    return list({json.dumps(pair, sort_keys=True, default=repr): pair for pair in pairs}.values())


def warn_of_unseen(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Prompt, Context]]) -> None:
    """
    Warn, once for each, if a reward model does not see tool calls, tools or documents, so that responses to prompts
    with others would get the same reward.
    """
    unseen: set[str] = set()
    for prompt, context in pairs:
        if not tokenizer.chat_template:
            unseen |= context.keys()
            continue
        messages = conversation(prompt, _SOME_RESPONSE)
        bare = [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
        others = {name: (messages, {key: value for key, value in context.items() if key != name}) for name in context}
        if any(message.get("tool_calls") for message in messages):
            others["tool_calls"] = (bare, context)
        for name in others.keys() - unseen:
            chat, rest = others[name]
            if from_template(tokenizer, messages, tokenize=False, **context) == from_template(
                tokenizer, chat, tokenize=False, **rest
            ):
                unseen.add(name)
    for name in sorted(unseen):
        template = "chat template leaves" if tokenizer.chat_template else "text has no chat template and leaves"
        what = "what was called" if name == "tool_calls" else "them"
        warnings.warn(
            f"The reward model's {template} out `{name}`, so the reward does not see {what}. Set a "
            "`tokenizer.chat_template` that writes them.",
            ItpWarning,
            stacklevel=5,
        )


def cut_left(sequence: TokenSequence, excess: int) -> TokenSequence:
    """Return the sequence without its first `excess` removable tokens."""
    kept = []
    for position, removable in enumerate(sequence.removable):
        if removable and excess > 0:
            excess -= 1
        else:
            kept.append(position)
    # Something is left to remove only if the special tokens themselves are too many.
    kept = kept[excess:]
    place = {position: index for index, position in enumerate(kept)}
    return TokenSequence(
        tuple(sequence.ids[position] for position in kept),
        tuple(sequence.type_ids[position] for position in kept),
        tuple(sequence.removable[position] for position in kept),
        tuple(place[position] for position in sequence.reads if position in place),
    )


def warn_of_cuts(cut_prompts: int, count: int, max_length: int | None, cut_responses: int) -> None:
    """Warn once about all prompts and responses that were cut."""
    if not cut_prompts:
        return
    also = f", and the response itself in {cut_responses} of them" if cut_responses else ""
    warnings.warn(
        f"{cut_prompts} of {count} prompts were cut on the left to fit the reward model's {max_length} tokens{also}, "
        "so their rewards ignore the beginning. Raise `max_length` or pass shorter prompts.",
        ItpWarning,
        stacklevel=5,
    )


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """
    Return `max_length` after checking it, by default the limit of model and tokenizer; `None` without a limit.

    Raises:
        `ArgumentError`: If `max_length` leaves no room beside the special tokens, or exceeds the model's positions.
        `ArgumentTypeError`: If `tokenizer` is not a tokenizer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ArgumentTypeError(
            f"`tokenizer` must be a transformers tokenizer, got a {type(tokenizer).__name__}. Load it with "
            "AutoTokenizer.from_pretrained(...)."
        )
    positions = _num_positions(model)
    if max_length is None:
        # Tokenizers without a limit give 1e30.
        limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
        return min(limits, default=None)
    smallest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    remedy = "Leave room for one token beside the special ones, or leave it out."
    return check_count("max_length", max_length, smallest, remedy, positions, "the reward model's positions")


def _num_positions(model: PreTrainedModel) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and similar models count positions from after the padding index, so not all of their table is usable.
        if not isinstance(module, nn.Embedding) or module.padding_idx is None:
            continue
        if name.endswith("position_embeddings"):
            return module.num_embeddings - module.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and positions > 0 else None
