"""
Rewards of a sequence-classification model, from the Hub, a folder or memory.

`text/encoding.py` makes tokens of text and `forward/scoring.py` logits of tokens. Knows nothing of policies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp.arrays import as_number
from hf_itp.errors import ArgumentError, ArgumentTypeError, RewardModelError
from hf_itp.rewards.base import Prompt, ResponseIds, RewardFunction
from hf_itp.rewards.checkpoints.layouts import reward_layout
from hf_itp.rewards.checkpoints.loading import load, load_as
from hf_itp.rewards.forward import own_code, passes
from hf_itp.rewards.forward.scoring import label_logits, once_each
from hf_itp.rewards.options import BatchSize, RewardModelOptions, takes_keywords_of
from hf_itp.rewards.text.context import contexts_of
from hf_itp.rewards.text.encoding import PairEncoder, token_limit
from hf_itp.rewards.text.rendering import conversation


class RewardModel(RewardFunction):
    """
    Score responses with a `...ForSequenceClassification` model: the reward is the raw logit of one label.

    Prompt and response are rendered with the reward model's own chat template, which may also write `tools` and
    `documents`, columns with one entry per response. Without a template an encoder reads them as a text pair and a
    decoder as one text. The reward of a response does not depend on what else is scored with it: batches are padded
    on the right and pooled by attention mask, and the head runs in float32. Identical pairs run once, and so does a
    prompt for all its responses if every layer of the model is causal attention. In bfloat16 or on an accelerator the
    last bits still depend on the batch size; `unbatched=True` removes that too.

    Args:
        model (`PreTrainedModel`):
            The model. Its device, dtypes and train/eval mode are not changed.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer the model was trained with. Its settings are not changed.
        label (`int` or `str`, *optional*):
            Index or name of the label whose logit is the reward. Required if the model has several.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`):
            Responses per forward pass; `"auto"` depends on their length. Halved when memory runs out.
        max_length (`int`, *optional*):
            Tokens of prompt and response together. Longer ones lose the beginning of the prompt, with a warning, and
            a part of the response only if the response itself is longer. Defaults to the limit of model and tokenizer.
        append_eos (`bool`, *optional*, defaults to `False`):
            Whether to append the end token to sequences that lack it. Set it for models that TRL's `RewardTrainer`
            trained on plain text.
        unbatched (`bool`, *optional*, defaults to `False`):
            Whether to score one response at a time, each with its whole prompt.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        `RewardModelError`: If the model is not a sequence classifier.
        `ArgumentError`: If an option breaks its rule or does not fit the model.

    Examples:

    ```python
    >>> from hf_itp.rewards import RewardModel
    >>> reward_model = RewardModel.from_pretrained("org/reward-model")  # doctest: +SKIP
    >>> reward_model(["Why is the sky blue?"], ["Because of Rayleigh scattering."])  # doctest: +SKIP
    tensor([1.7031])

    ```
    """

    @takes_keywords_of(RewardModelOptions)
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        _check_classifier(model)
        chosen = RewardModelOptions.from_keywords(options)
        max_length = token_limit(model, tokenizer, chosen.max_length)
        self.model = model
        self.name = model.config.name_or_path or type(model).__name__
        self.revision: str | None = None
        self._scores_itself = own_code.has_own_code(model)
        self.label = 0 if self._scores_itself and chosen.label is None else _label_index(model.config, chosen.label)
        self._shift, self._scale = _normalization(model)
        self.unbatched, self.progress = chosen.unbatched, chosen.progress
        self.batch_size: BatchSize = 1 if chosen.unbatched else chosen.batch_size
        pairs = not passes.pools_last_token(model)
        self._encoder = PairEncoder(tokenizer, pairs, max_length, append_eos=chosen.append_eos)

    @classmethod
    @takes_keywords_of(RewardModelOptions, load)
    def from_pretrained(cls, id_or_folder: str, *, trust_remote_code: bool = False, **options: Any) -> RewardModel:
        """
        Load a reward model and its tokenizer. Refuse a checkpoint that lacks weights: they would be random.

        Args:
            id_or_folder (`str`):
                Hub id, local folder or `"embedded"`: a sequence classifier, one of the other families listed in
                `docs/reward_models.md`, or an adapter that brings its head.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub; with `trust_remote_code` a commit.
            dtype (`str` or `torch.dtype`, *optional*):
                Data type of the body; the head always runs in float32. Defaults to the checkpoint's.
            device (`str`, `int` or `torch.device`, *optional*, defaults to the CPU):
                Where to put the model.
            device_map (`str` or `dict`, *optional*):
                How Accelerate spreads the model over devices, instead of `device`.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Replaces the checkpoint's own.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run code from the checkpoint, where its family needs that.
            token (`str` or `bool`, *optional*):
                Hub token for private and gated repositories.
            options:
                Options of [`RewardModel`]; anything else goes to transformers' `from_pretrained`.

        Raises:
            `LoadError`: If checkpoint or tokenizer cannot be found or read.
            `RewardModelError`: If the checkpoint is not a reward model (such as a language model without a trained
                head), is a pickle, or needs code that is not allowed to run.
            `ArgumentError`: If code from the Hub would run without a fixed commit.
        """
        return load_as(
            cls,
            RewardModelOptions,
            id_or_folder,
            lambda checkpoint: reward_layout(checkpoint, trust_remote_code),
            {"trust_remote_code": trust_remote_code, **options},
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reward model's own tokenizer."""
        return self._encoder.tokenizer

    @property
    def max_length(self) -> int | None:
        """The most tokens of prompt and response together that the model sees, `None` without a limit."""
        return self._encoder.max_length

    def prompt_features(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """
        Return the mean last hidden state of each prompt without a response, `(n, D)`, float32, on the CPU.
        """
        sequences = self._encoder.encode(prompts, [""] * len(prompts))
        with passes.evaluating(self.model):
            return torch.cat([passes.features(self.model, [sequence]) for sequence in sequences])

    @property
    def devices(self) -> frozenset[torch.device]:
        return passes.devices(self.model)

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
        if self._scores_itself:
            rewards = own_code.rewards(self.model, self._encoder, prompts, responses, contexts)
        else:
            sequences, places = once_each(self._encoder.encode(prompts, responses, contexts))
            rewards = label_logits(
                self.model, sequences, self.label, self.batch_size, not self.unbatched, self.progress
            )[places]
        return rewards if self._scale is None else (rewards - self._shift) / self._scale

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        contexts = contexts_of(len(prompts), columns)
        if own_code.reads_chats(self.model):
            for prompt in prompts:
                conversation(prompt, "")
            own_code.warn_of_unseen_context(self.model, contexts)
            return
        if sequences := self._encoder.check(prompts, contexts):
            passes.check_ids(self.model, sequences)


def _normalization(model: PreTrainedModel) -> tuple[float, float | None]:
    """Return the mean and standard deviation that OpenRLHF writes into config.json; `(0.0, None)` without them."""
    mean, std = as_number(getattr(model.config, "mean", None)), as_number(getattr(model.config, "std", None))
    if mean is None or std is None:
        return 0.0, None
    if not math.isfinite(mean) or not math.isfinite(std) or std <= 0:
        raise RewardModelError(
            f"`mean` and `std` in the configuration of a reward model must be finite, `std` above 0, got {mean} and "
            f"{std}. Correct or remove them."
        )
    return float(mean), float(std)


def _check_classifier(model: object) -> None:
    if isinstance(model, str):
        raise ArgumentTypeError(
            f"`model` must be a PreTrainedModel, got the text {model!r:.80}. Load it: "
            "RewardModel.from_pretrained(id_or_folder)."
        )
    if not isinstance(model, PreTrainedModel):
        raise ArgumentTypeError(
            f"`reward_model` must be a PreTrainedModel, got a {type(model).__name__}. Pass the transformers "
            "model itself; merge a PEFT model first with `merge_and_unload()`."
        )
    from_transformers = type(model).__module__.startswith("transformers.")
    classifies = any(base.__name__.endswith("ForSequenceClassification") for base in type(model).__mro__)
    if from_transformers and not classifies:
        raise RewardModelError(
            f"A reward model must be a sequence classifier, got a `{type(model).__name__}`, which has no reward "
            "head. Pass a `...ForSequenceClassification` model trained as a reward model."
        )


def _label_index(config: Any, label: int | str | None) -> int:
    names = [config.id2label[index] for index in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, str) and label in names:
        return names.index(label)
    index = as_number(label)
    if isinstance(index, int) and 0 <= index < len(names):
        return index
    listed = ", ".join(f"{index} ({name!r})" for index, name in enumerate(names))
    if label is None:
        raise ArgumentError(
            f"`label` must say which of the {len(names)} labels is the reward, got None. Choose one of {listed}."
        )
    raise ArgumentError(f"`label` must be a label of the reward model, got {label!r}. Choose one of {listed}.")
