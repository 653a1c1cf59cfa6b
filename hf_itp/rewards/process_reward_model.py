"""
Rewards of models that judge a response step by step, aggregated to one per response.

`text/steps.py` makes tokens of text; this file reads the model after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardModelError
from hf_itp.functional.steps import aggregate_steps
from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction
from hf_itp.rewards.checkpoints.layouts import process_layout
from hf_itp.rewards.checkpoints.loading import load, load_as
from hf_itp.rewards.forward import own_code, passes
from hf_itp.rewards.forward.scoring import budget_of, map_batches, once_each, scoring_bar
from hf_itp.rewards.options import BatchSize, ProcessRewardModelOptions, takes_keywords_of
from hf_itp.rewards.text import steps
from hf_itp.rewards.text.context import Context, contexts_of
from hf_itp.rewards.text.encoding import (
    TokenSequence,
    cut_left,
    distinct_pairs,
    token_limit,
    warn_of_cuts,
    warn_of_unseen,
)


class ProcessRewardModel(RewardFunction):
    r"""
    Score responses by the probability that each of their steps is good.

    A response is split into steps at `separator`, and the model is read after each, the way it was trained:

    - Qwen2.5-Math-PRM: at `<extra_0>`, in the chat template, by the softmax of its second label.
    - TRL's token classifiers: at the last token of `step_token`, without a template, by the same.
    - Language models with `step_token` (Math-Shepherd): at that token, by `good_token` against `bad_token`.
    - Language models without `step_token` (RLHFlow's): each step is a turn of its own, and the next turn's first token
      counts, `good_token` against `bad_token`.

    With step probabilities \\( p_1, \ldots, p_m \\) the reward is their minimum, product, mean or the last. A
    response without a separator is one step.

    Args:
        model (`PreTrainedModel`):
            A token classifier with two labels, bad and good, or a language model.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer it was trained with.
        step_token (`str`, *optional*):
            The text that the model expects after each step, leading spaces included. Known for Qwen2.5-Math-PRM.
        separator (`str`, *optional*, defaults to two line breaks):
            The text between two steps of a response.
        good_token, bad_token (`str`, *optional*):
            A language model's two answers to a step, one token each.
        aggregate (`"min"`, `"product"`, `"last"` or `"mean"`, *optional*, defaults to `"min"`):
            How the rewards of the steps become that of the response.
        batch_size, max_length, progress:
            As in [`RewardModel`].

    Raises:
        `RewardModelError`: If a token classifier does not have two labels, or an answer is not one token.
        `ArgumentError`: If an option breaks its rule, or `step_token` is missing.

    Examples:

    ```python
    >>> from hf_itp.rewards import ProcessRewardModel
    >>> reward_model = ProcessRewardModel.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B")  # doctest: +SKIP
    >>> reward_model.step_rewards("What is 2 + 3 * 4?", "3 * 4 = 12.\n\n2 + 12 = 14.")  # doctest: +SKIP
    tensor([0.9980, 0.9961])
    >>> reward_model(["What is 2 + 3 * 4?"], ["3 * 4 = 12.\n\n2 + 12 = 14."])  # doctest: +SKIP
    tensor([0.9961])

    ```
    """

    @takes_keywords_of(ProcessRewardModelOptions)
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ArgumentTypeError(
                f"`model` must be a PreTrainedModel, got {model!r:.80}. Load one by name: "
                "ProcessRewardModel.from_pretrained(id_or_folder)."
            )
        chosen = ProcessRewardModelOptions.from_keywords(options)
        self.max_length = token_limit(model, tokenizer, chosen.max_length)
        self.model, self.tokenizer = model, tokenizer
        self.name = model.config.name_or_path or type(model).__name__
        self.revision: str | None = None
        self.separator, self.aggregate, self.progress = chosen.separator, chosen.aggregate, chosen.progress
        self.batch_size: BatchSize = 1 if own_code.has_own_code(model) else chosen.batch_size
        self._good_token = chosen.good_token
        self._answers = _answers(tokenizer, chosen.good_token, chosen.bad_token)
        self.step_token = _step_token(model, tokenizer, chosen.step_token, language_model=self._answers is not None)
        if self._answers is None and getattr(model.config, "num_labels", 0) != 2:
            raise RewardModelError(
                f"A process reward model must have two labels, bad and good, got `{type(model).__name__}` with "
                f"{getattr(model.config, 'num_labels', 0)}. Pass good_token and bad_token for a language model."
            )

    @classmethod
    @takes_keywords_of(ProcessRewardModelOptions, load)
    def from_pretrained(
        cls, id_or_folder: str, *, trust_remote_code: bool = False, **options: Any
    ) -> ProcessRewardModel:
        """
        Load a token classifier, or with `good_token` and `bad_token` a language model, and its tokenizer.

        Args:
            id_or_folder (`str`): Hub id or local folder.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run code from the checkpoint, where its class is not known here.
            options:
                Options of [`ProcessRewardModel`]; `revision`, `token`, `dtype`, `device`, `device_map`, `tokenizer`
                and others as in [`RewardModel.from_pretrained`].

        Raises:
            `LoadError`: If checkpoint or tokenizer cannot be found or read.
            `RewardModelError`: If the checkpoint judges no steps, lacks a trained head, is a pickle, or needs code
                that is not allowed to run.
            `ArgumentError`: If code from the Hub would run without a fixed commit.
        """
        return load_as(
            cls,
            ProcessRewardModelOptions,
            id_or_folder,
            lambda checkpoint: process_layout(checkpoint, options.get("good_token") is not None, trust_remote_code),
            {"trust_remote_code": trust_remote_code, **options},
        )

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: ResponseIds = None,
        /,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
    ) -> torch.Tensor:
        contexts = contexts_of(len(prompts), {"tools": tools, "documents": documents})
        sequences, places = once_each(self._encode(prompts, responses, contexts))
        with passes.evaluating(self.model), scoring_bar(len(sequences), self.progress) as bar:
            return map_batches(self._rewards, sequences, self.batch_size, bar, *budget_of(self.model))[places]

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        pairs = distinct_pairs(prompts, contexts_of(len(prompts), columns))
        for prompt, context in pairs:
            passes.check_ids(self.model, [self._render(prompt, ["."], context)])
        warn_of_unseen(self.tokenizer, pairs)

    @property
    def devices(self) -> frozenset[torch.device]:
        return passes.devices(self.model)

    def step_rewards(self, prompt: Prompt, response: str) -> torch.Tensor:
        """Return the probability that each step of one response is good, float32 `(steps,)`, on the CPU."""
        with passes.evaluating(self.model):
            return self._probabilities(self._encode([prompt], [response], [{}]))[0].float()

    def _rewards(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        return torch.stack([aggregate_steps(row, self.aggregate) for row in self._probabilities(sequences)]).float()

    def _probabilities(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        # In float64, where the product of many steps stays above 0.
        if self._answers is not None:
            logits = passes.answer_logits(self.model, sequences, self._answers)
            return [row.double().softmax(dim=-1)[:, 0] for row in logits]
        return [row.double().softmax(dim=-1)[:, 1] for row in passes.step_logits(self.model, sequences)]

    def _encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str], contexts: Sequence[Context]
    ) -> list[TokenSequence]:
        sequences, cut_prompts, cut_responses = [], 0, 0
        for prompt, response, context in zip(prompts, responses, contexts, strict=True):
            whole = self._render(prompt, steps.split_steps(response, self.separator), context)
            excess = len(whole.ids) - (self.max_length or len(whole.ids))
            sequences.append(cut_left(whole, excess) if excess > 0 else whole)
            cut_prompts += excess > 0
            cut_responses += len(sequences[-1].reads) < len(whole.reads)
        warn_of_cuts(cut_prompts, len(sequences), self.max_length, cut_responses)
        return sequences

    def _render(self, prompt: Prompt, parts: list[str], context: Context) -> TokenSequence:
        if self._answers is not None and self._good_token is not None:
            if self.step_token is None:
                return steps.answered(self.tokenizer, prompt, parts, self._good_token, self._answers[0], context)
            return steps.marked(self.tokenizer, prompt, parts, self.step_token, context, between=self.separator)
        assert self.step_token is not None
        if _known_step_token(self.model) is not None or own_code.has_own_code(self.model):
            return steps.marked(self.tokenizer, prompt, parts, self.step_token, context)
        return steps.concatenated(self.tokenizer, prompt, parts, self.step_token)


def _answers(tokenizer: PreTrainedTokenizerBase, good: str | None, bad: str | None) -> list[int] | None:
    """Return the ids of a language model's two answers, `None` for a token classifier."""
    if good is None or bad is None:
        return None
    return [_one_id(tokenizer, "good_token", good), _one_id(tokenizer, "bad_token", bad)]


def _one_id(tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> int:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise RewardModelError(
            f"`{name}` must be one known token of the tokenizer, got {text!r} ({len(ids)} tokens). Take it from the "
            "model's card."
        )
    return ids[0]


def _known_step_token(model: PreTrainedModel) -> str | None:
    """Return the step token that the model's class states, as the class of a layout may."""
    return getattr(type(model), "step_token", None)


def _step_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, step_token: str | None, language_model: bool
) -> str | None:
    """Return the text that follows each step, `None` if each step is a turn of its own."""
    step_token = _known_step_token(model) if step_token is None else step_token
    if step_token is None and language_model:
        return None
    if not step_token:
        raise ArgumentError(
            f"`step_token` must be the text that the model expects after each step, got {step_token!r}. Take it from "
            "the model's card; TRL's own models expect a line break."
        )
    ids = list(tokenizer(step_token, add_special_tokens=False)["input_ids"])
    if not ids or tokenizer.unk_token_id in ids:
        raise RewardModelError(
            f"`step_token` must be in the tokenizer's vocabulary, got {step_token!r}. Take it from the model's card."
        )
    return step_token
