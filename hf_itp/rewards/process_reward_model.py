"""
Rewards of models that judge a response step by step: one number per step, put together to one per response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_itp.errors import ArgumentError, RewardModelError
from hf_itp.functional.checks import check_choice
from hf_itp.rewards import forward
from hf_itp.rewards.base import Prompt, RewardFunction
from hf_itp.rewards.loading import check_remote_code, load_tokenizer, load_weights, local_name
from hf_itp.rewards.rendering import conversation

AGGREGATES = ("min", "product", "last", "mean")


class ProcessRewardModel(RewardFunction):
    r"""
    Scores responses by the probability that each of their steps is good.

    A response is cut into steps at `separator`, `step_token` is written behind each, and the model is read there: a
    token classifier by the softmax of its second label, a language model by `good_token` against `bad_token`. With
    step probabilities \\( p_1, \ldots, p_m \\) the reward is their minimum, product, mean or the last.

    Known layouts: Qwen2.5-Math-PRM (`step_token="<extra_0>"`), TRL's PRMs (token classifiers, `step_token="\n"`),
    Math-Shepherd (`step_token="ки", good_token="+", bad_token="-"`).

    Args:
        model (`PreTrainedModel`): A token classifier with two labels, or a language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        step_token (`str`): What stands behind a step.
        separator (`str`, *optional*, defaults to two line breaks): What stands between steps in a response.
        good_token, bad_token (`str`, *optional*): One token each, of a language model.
        aggregate (`"min"`, `"product"`, `"last"` or `"mean"`, *optional*, defaults to `"min"`): Steps to response.

    Raises:
        `RewardModelError`: If the model has no two labels, or `step_token` is no token of the tokenizer.
        `ArgumentError`: If `aggregate` is none, or a language model is given without its two answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step_token: str,
        separator: str = "\n\n",
        good_token: str | None = None,
        bad_token: str | None = None,
        aggregate: Literal["min", "product", "last", "mean"] = "min",
    ):
        check_choice("aggregate", aggregate, AGGREGATES)
        if not separator:
            raise ArgumentError("`separator` has to be what stands between steps, but is empty. Pass e.g. '\\n\\n'.")
        if (good_token is None) != (bad_token is None):
            raise ArgumentError(
                f"`good_token` and `bad_token` go together, but are {good_token!r} and {bad_token!r}. Pass both for a "
                "language model, none for a token classifier."
            )
        self.model, self.tokenizer, self.separator, self.aggregate = model, tokenizer, separator, aggregate
        self.name = model.config.name_or_path or type(model).__name__
        self._step = self._ids(step_token)
        if not self._step:
            raise RewardModelError(
                f"`step_token` has to be tokens of the tokenizer, but {step_token!r} is none. Take it from the "
                "model's card."
            )
        self._answers = None
        if good_token is not None and bad_token is not None:
            self._answers = [self._one_id("good_token", good_token), self._one_id("bad_token", bad_token)]
        elif getattr(model.config, "num_labels", 0) != 2:
            raise RewardModelError(
                f"A process reward model has to have two labels, bad and good, but `{type(model).__name__}` has "
                f"{getattr(model.config, 'num_labels', 0)}. Pass good_token and bad_token for a language model."
            )

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str,
        *,
        trust_remote_code: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: str | torch.dtype = "auto",
        **options: Any,
    ) -> ProcessRewardModel:
        """
        Loads a token classifier, or with `good_token` and `bad_token` a language model, and its tokenizer.

        Args:
            options: Of the constructor.
        """
        check_remote_code(id_or_folder, trust_remote_code, revision)
        hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        hub = {name: value for name, value in hub.items() if value is not None}
        kind: Any = AutoModelForTokenClassification if options.get("good_token") is None else AutoModelForCausalLM
        if trust_remote_code:
            # Qwen2.5-Math-PRM registers its class as the plain model's.
            own = getattr(AutoConfig.from_pretrained(local_name(id_or_folder), **hub), "auto_map", {})
            kind = AutoModel if kind.__name__ not in own and "AutoModel" in own else kind
        model = load_weights(kind, id_or_folder, dtype=dtype, **hub)
        found = cls(model, load_tokenizer(id_or_folder, **hub), **options)
        found.name = id_or_folder
        return found

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_ids: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        with forward.evaluating(self.model):
            return torch.stack([self._reward(p, r) for p, r in zip(prompts, responses, strict=True)])

    def step_rewards(self, prompt: Prompt, response: str) -> torch.Tensor:
        """The probability that each step of one response is good, float32 `(steps,)`."""
        with forward.evaluating(self.model):
            return self._steps(prompt, response)

    def _reward(self, prompt: Prompt, response: str) -> torch.Tensor:
        steps = self._steps(prompt, response)
        if self.aggregate == "min":
            return steps.min()
        if self.aggregate == "product":
            return steps.prod()
        return steps[-1] if self.aggregate == "last" else steps.mean()

    def _steps(self, prompt: Prompt, response: str) -> torch.Tensor:
        ids, places = self._prompt_ids(prompt), []
        for step in [part for part in response.split(self.separator) if part.strip()] or [response]:
            ids = [*ids, *self._ids(step), *self._step]
            places.append(len(ids) - 1)
        device = forward.input_device(self.model)
        logits = self.model(input_ids=torch.tensor([ids], device=device), return_dict=True).logits[0, places].float()
        if self._answers is None:
            return logits.softmax(dim=-1)[:, 1].cpu()
        return logits[:, self._answers].softmax(dim=-1)[:, 0].cpu()

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self.tokenizer.chat_template is None:
            text = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            return list(self.tokenizer(text + "\n")["input_ids"])
        messages = conversation(prompt, "")[:-1] if isinstance(prompt, str) else list(prompt)
        encoded: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _one_id(self, name: str, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise RewardModelError(
                f"`{name}` has to be one token of the tokenizer, but {text!r} is {len(ids)} or unknown. Take it from "
                "the model's card."
            )
        return ids[0]
