"""A policy with its tokenizer, and reward models, from what the user wrote after `--model` and `--reward-model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hf_itp.errors import ArgumentError

if TYPE_CHECKING:
    import torch
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from hf_itp.generation.output import StrategyOutput
    from hf_itp.rewards import RewardModel
    from hf_itp.rewards.base import Prompt

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Policy:
    """A model and the tokenizer saved beside it, set up to continue prompts in batches."""

    # A `PreTrainedModel` that generates, for which transformers has no type.
    model: Any
    tokenizer: PreTrainedTokenizerBase

    def generate(self, prompts: Sequence[Prompt], **arguments: Any) -> StrategyOutput:
        """`generate` on the prompts as one batch, all chats or all text, with what it needs beside `arguments`."""
        return self.model.generate(
            **self._encode(list(prompts)),
            prompts=list(prompts),
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            **arguments,
        )

    def text_of(self, prompt: Prompt) -> Callable[[torch.Tensor], str]:
        """What gives the text of a response to the prompt, without special tokens and else as the policy wrote it."""
        from hf_itp.sampling.text import response_text

        seq2seq = self.model.config.is_encoder_decoder
        prompt_ids = [] if seq2seq else self._encode([prompt])["input_ids"][0].tolist()
        return lambda response: response_text(self.tokenizer, prompt_ids, response.tolist())

    def _encode(self, prompts: list[Any]) -> BatchEncoding:
        form: dict[str, Any] = {"padding": len(prompts) > 1, "return_tensors": "pt"}
        if isinstance(prompts[0], str):
            return self.tokenizer(prompts, **form).to(self.model.device)
        from jinja2 import TemplateError

        try:
            inputs = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, **form)
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            # The template is the checkpoint's: it may refuse a role as well as try what its sandbox forbids.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ArgumentError(
                f"The policy's chat template cannot render these prompts: {reason}. Change the messages, or continue "
                "them as plain text (--plain)."
            ) from error
        return cast("BatchEncoding", inputs).to(self.model.device)


def load_policy(
    model_id: str, *, device: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> Policy:
    """
    Raises:
        `LoadError`: If there is no model or no tokenizer under that id, or it is a pickle, brings code that may not
            run or lacks weights.
        `ArgumentError`: If there is no such device.
    """
    from hf_itp.policies.loading import load_policy_checkpoint

    place = _device(device)
    model, tokenizer, _ = load_policy_checkpoint(
        model_id, dtype=dtype, trust_remote_code=trust_remote_code, argument="--model"
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(model.to(place), tokenizer)


def recommendation(policy: Policy) -> Any:
    """Return how the policy's checkpoint recommends to be decoded, unchecked; `None` if it does not."""
    from hf_itp.generation.recommendation import entry_of

    return entry_of(policy.model)


def load_reward_models(
    model_ids: Sequence[str],
    *,
    device: str | None = None,
    label: str | None = None,
    trust_remote_code: bool = False,
) -> RewardModel | list[RewardModel]:
    """One reward model, or a list of them: an ensemble. `label` is a name or an index in digits."""
    from hf_itp.rewards import RewardModel

    models = [
        RewardModel.from_pretrained(
            model_id,
            device=_device(device),
            label=int(label) if label is not None and label.isdecimal() else label,
            trust_remote_code=trust_remote_code,
        )
        for model_id in model_ids
    ]
    return models[0] if len(models) == 1 else models


@contextmanager
def loading_bars(shown: bool) -> Iterator[None]:
    """Hides transformers' bars of downloads and weights within, where they are not to be shown."""
    from transformers.utils import logging

    if shown or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ArgumentError(
            f"`--device` has to name a device of this machine, but is {name!r}. Use cpu, or leave it out."
        ) from error
    return device
