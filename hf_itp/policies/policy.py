"""
A policy with its tokenizer, loaded from a checkpoint: texts and chats in, candidates out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_itp.errors import ArgumentError
from hf_itp.policies.chat_template import (
    TemplateArguments,
    arguments_of_prompts,
    check_template_takes,
    context_columns,
    encoded_chats,
)
from hf_itp.policies.loading import load_policy_checkpoint
from hf_itp.rewards.base import Prompt
from hf_itp.sampling.text import response_text


@dataclass(frozen=True)
class Policy:
    """
    Continue prompts in batches with a model and its tokenizer.

    Args:
        model (`PreTrainedModel`): The model, in eval mode, on the device it runs on.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, which pads on the left.

    Examples:

    ```python
    >>> from hf_itp import Policy
    >>> policy = Policy.from_pretrained("embedded")  # doctest: +SKIP
    >>> chat = [{"role": "user", "content": "Name a river."}]
    >>> output = policy.generate([chat], strategy="pessimism", reward_model="embedded")  # doctest: +SKIP
    >>> winner = output.candidates[0][output.selected[0, 0]]  # doctest: +SKIP
    >>> print(policy.text_of(chat)(winner))  # doctest: +SKIP

    ```
    """

    model: Any  # transformers has no type for a `PreTrainedModel` that generates
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
    ) -> Self:
        """
        Load a policy and its tokenizer, both at one commit.

        Args:
            model_id (`str`): Hub id, local folder or `"embedded"`; adapters load on their base model.
            device (`str` or `torch.device`, *optional*): Where it runs. Defaults to an accelerator if there is one.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): The checkpoint's own by default.
            trust_remote_code (`bool`, *optional*, defaults to `False`): Run code that the checkpoint brings.

        Raises:
            `LoadError`: If no policy with a tokenizer can be read there, it is a pickle, brings code that may not run,
                or lacks weights.
            `ArgumentError`: If there is no such device.
        """
        place = _device(device)
        model, tokenizer, _ = load_policy_checkpoint(
            model_id, dtype=dtype, trust_remote_code=trust_remote_code, argument="model_id"
        )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(model.to(place), tokenizer)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        **arguments: Any,
    ) -> Any:
        """
        Call the model's `generate` on the prompts as one batch.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): All texts, which are continued, or all chats.
            tools (`list`, *optional*): What the policy may call: functions with docstrings, or their JSON schemas. The
                chat template writes them, and so does the reward model's if it knows tools: it gets them in
                `reward_kwargs`, as other rewards do that take them.
            documents (`list[dict]`, *optional*): Texts to answer from, for both templates too.
            chat_template_kwargs (`dict`, or a `list` of one per prompt, *optional*): Further variables of the policy's
                chat template, e.g. `{"enable_thinking": False}`. Those of a prompt may hold its own `tools` and
                `documents`.
            arguments: Keywords of `generate`, `strategy` and `reward_model` among them.

        Returns:
            [`~hf_itp.StrategyOutput`]: Winners and all candidates; transformers' own output without a `strategy`.

        Raises:
            `ArgumentError`: If there are no prompts, or texts beside chats, or the chat template refuses a chat or
                leaves out tools, documents or a variable.
        """
        prompts = list(prompts)
        if len({isinstance(prompt, str) for prompt in prompts}) != 1:
            raise ArgumentError(
                f"`prompts` must be all texts or all chats, got {'both' if prompts else 'none'}. Pass each kind in a "
                "call of its own."
            )
        of_prompts = arguments_of_prompts(prompts, chat_template_kwargs, tools, documents)
        check_template_takes(self.tokenizer, prompts, of_prompts)
        # Plain `generate` knows neither.
        own: dict[str, Any] = {}
        if arguments.get("strategy") is not None:
            columns = {**(arguments.pop("reward_kwargs", None) or {}), **context_columns(of_prompts)}
            own = {"prompts": prompts, **({"reward_kwargs": columns} if columns else {})}
        defaults = {"pad_token_id": self.tokenizer.pad_token_id, "return_dict_in_generate": True}
        return self.model.generate(
            **self._encode(prompts, of_prompts), tokenizer=self.tokenizer, **{**defaults, **own, **arguments}
        )

    def text_of(self, prompt: Prompt, **template: Any) -> Callable[[torch.Tensor], str]:
        """
        Return the function that decodes responses to this prompt, without special tokens.

        Args:
            template: `tools`, `documents` and `chat_template_kwargs` that [`generate`] was called with.
        """
        prompt_ids: list[int] = []
        if not self.model.config.is_encoder_decoder:
            encoded: Any = self._encode([prompt], arguments_of_prompts([prompt], **template))
            prompt_ids = encoded["input_ids"][0].tolist()
        return lambda response: response_text(self.tokenizer, prompt_ids, response.tolist())

    def _encode(self, prompts: list[Any], of_prompts: list[TemplateArguments]) -> BatchEncoding:
        form: dict[str, Any] = {"padding": len(prompts) > 1, "return_tensors": "pt"}
        if isinstance(prompts[0], str):
            return self.tokenizer(prompts, **form).to(self.model.device)
        return encoded_chats(self.tokenizer, prompts, of_prompts, **form).to(self.model.device)


def as_conversations(
    prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, *, plain: bool = False
) -> list[Prompt]:
    """
    Return the prompts as a policy reads them: a text becomes a user's message if the policy has a chat template.

    Args:
        prompts: Texts and chats.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        plain (`bool`, *optional*, defaults to `False`): Keep texts as texts, whatever the tokenizer has.

    Raises:
        `ArgumentError`: If a chat meets a policy without a chat template, or `plain`.
    """
    if tokenizer.chat_template is not None and not plain:
        return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = list(prompts)
    for position, prompt in enumerate(texts, start=1):
        if not isinstance(prompt, str):
            raise ArgumentError(
                f"Prompt {position} must be text for a policy that reads plain text, got a chat. Give it as text, or "
                "choose a policy with a chat template, without `plain`."
            )
    return texts


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ArgumentError(
            f"`device` must name a device of this machine, got {name!r}. Pass e.g. device='cpu', or leave it out."
        ) from error
    return device
