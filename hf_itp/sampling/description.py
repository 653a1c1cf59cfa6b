"""
Describe a draw: everything that decides which responses a policy gives to a prompt and what is read of them, resolved
and ready to compare.

References, rollouts, pools and `generate` resolve their settings here. Knows nothing of rewards, nor of the policy's
weights: whoever records a draw adds their identity.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from hf_itp.errors import ArgumentError
from hf_itp.policies.chat_template import (
    TemplateArguments,
    check_template_takes,
    check_variables,
    context_columns,
    prompt_ids,
    template_arguments,
)
from hf_itp.policies.checks import check_generation_config, check_model
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards.base import Prompt
from hf_itp.sampling.recorded import (
    as_json,
    fingerprint,
    plain_number,
    recorded_object,
    template_fingerprint,
    text_tokenizer,
    tokenizer_identity,
)
from hf_itp.sampling.settings import unset_is_off
from hf_itp.sampling.thinking import RewardReader, Thinking, check_reward_view

# Settings that decide what is drawn, with the values that switch each off. `do_sample` is True in every draw, and
# settings that ask for another way of decoding are refused.
_OFF: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "decoder_start_token_id": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "eos_token_id": (None, []),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "max_length": (None,),
    "max_new_tokens": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "min_p": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "remove_invalid_values": (None, False),
    "repetition_penalty": (None, 1),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
    "temperature": (None, 1),
    "top_h": (None,),
    "top_k": (None, 0),
    "top_p": (None, 1),
    "typical_p": (None, 1),
    "watermarking_config": (None,),
}
_OBJECTS = ("generation_config", "logits_processor", "stopping_criteria")
# Settings that look at a whole row, so that padding before a prompt would change its response.
_READ_WHOLE_ROWS = {"bad_words_ids", "max_length", "min_length", "no_repeat_ngram_size", "sequence_bias"}
# New tokens if nobody says how many, as in transformers.
_DEFAULT_LENGTH = 20
# Settings that keep a draw from being repeated, or that a decoding method of our own cannot honour.
_REFUSED = {
    "max_time": "a response would depend on the clock. Remove it and bound the length with `max_new_tokens`",
    "token_healing": "it rewrites the prompt. Remove it",
}


@dataclass(frozen=True)
class DrawDescription:
    """
    Description of how responses are drawn. Make one with [`DrawDescription.of`].

    It holds every setting resolved (the caller's before the policy's own; off if nobody sets it), how a prompt becomes
    tokens, what processes the logits, what ends a response, and what a reward reads of it. A system prompt is a
    message of the chat, so it belongs to the prompt.

    Args:
        generation_config (`GenerationConfig`): Resolved settings: none is left to the policy that draws.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Turns prompts into tokens.
        chat_template_kwargs (`dict`): Arguments of its chat template, `tools` and `documents` among them.
        logits_processor (`LogitsProcessorList`), stopping_criteria (`StoppingCriteriaList`): The caller's own.
        of_prompts (`dict[str, dict]`): Arguments of the chat template of single prompts, by fingerprint; these go
            before `chat_template_kwargs`.
        reward_view (`str`): What a reward reads of a response: `"full"` or `"final"`.
    """

    generation_config: GenerationConfig
    tokenizer: Any
    chat_template_kwargs: dict[str, Any]
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    of_prompts: Mapping[str, TemplateArguments] = field(default_factory=dict)
    reward_view: str = "full"

    @classmethod
    def of(
        cls,
        policy: Any,
        tokenizer: Any,
        sampling: Mapping[str, Any],
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        of_prompts: Mapping[str, TemplateArguments] | None = None,
        reward_view: str = "full",
    ) -> Self:
        """
        Resolve the settings of a draw.

        Args:
            policy (`PreTrainedModel`): Draws the responses; its generation config has the settings nobody overrides.
            tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer.
            sampling (`dict`): Keywords of `generate`: settings, `generation_config`, `logits_processor` and
                `stopping_criteria`.
            chat_template_kwargs (`dict`, *optional*): Passed to the chat template, e.g. `{"enable_thinking": False}`.
            of_prompts (`dict[str, dict]`, *optional*): The same for single prompts, by fingerprint.
            reward_view (`str`, *optional*, defaults to `"full"`): What a reward reads of a response.

        Raises:
            `ArgumentError`: If a keyword is not a setting of a draw, or asks for something other than independent
                samples, or the chat template does not use a variable.
            `UnsupportedModelError`: If the policy has a decoding loop of its own.
        """
        check_model(policy.get_base_model() if hasattr(policy, "get_base_model") else policy)
        sampling = dict(sampling)
        given = sampling.pop("generation_config", None)
        processors = LogitsProcessorList(sampling.pop("logits_processor", None) or [])
        criteria = StoppingCriteriaList(sampling.pop("stopping_criteria", None) or [])
        config = _resolved(policy, sampling, given)
        check_generation_config(config, num_candidates=2)
        for name, reason in _REFUSED.items():
            if getattr(config, name, None):
                raise ArgumentError(
                    f"`{name}` must be off where references or rollouts are drawn, got {getattr(config, name)!r}: "
                    f"{reason}."
                )
        arguments = template_arguments(chat_template_kwargs)
        check_variables(tokenizer, arguments)
        check_reward_view(reward_view)
        description = cls(config, tokenizer, arguments, processors, criteria, dict(of_prompts or {}), reward_view)
        for own in (arguments, *description.of_prompts.values()):
            _recorded_arguments(own)  # refused now if they cannot be recorded
        return description

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are on, as JSON."""
        on: dict[str, Any] = {}
        for name, off in _OFF.items():
            value = getattr(self.generation_config, name, None)
            if value not in off:
                on[name] = as_json(name, value)
        if isinstance(on.get("eos_token_id", []), int):
            on["eos_token_id"] = [on["eos_token_id"]]
        if "eos_token_id" in on:
            on["eos_token_id"] = sorted(on["eos_token_id"])
        if isinstance(on.get("stop_strings"), str):
            on["stop_strings"] = [on["stop_strings"]]
        for name in ("max", "min"):  # transformers' own precedence
            if f"{name}_new_tokens" in on:
                on.pop(f"{name}_length", None)
        return on

    @staticmethod
    def asked(policy: PreTrainedModel, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the short form of a description, as JSON.

        It has the settings that the caller passes, and those that are added because nobody sets them.
        """
        given = sampling.get("generation_config")
        keywords = {name: value for name, value in sampling.items() if name not in _OBJECTS}
        in_config = {name: getattr(given, name, None) for name in (*_OFF, "do_sample")}
        known = {name: value for name, value in in_config.items() if value is not None}
        asked = {**known, **keywords, **unset_is_off(policy, keywords, given)}
        return {name: as_json(name, value) for name, value in sorted(asked.items())}

    @property
    def reads_padding(self) -> bool:
        """Whether a response would depend on the padding before its prompt."""
        return bool(_READ_WHOLE_ROWS & self.settings.keys())

    def entries(self, policy: Mapping[str, Any], prompts: Sequence[Any]) -> dict[str, Any]:
        """
        Return the whole description as JSON.

        Args:
            policy (`dict`): Identity of the policy.
            prompts (`list[str]` or `list[list[dict]]`): The prompts, empty if they are not known. The chat template is
                recorded unless all of them are texts.

        Raises:
            `ArgumentError`: If a setting is not JSON, or a processor cannot be described; names it.
        """
        has_chats = not prompts or any(not isinstance(prompt, str) for prompt in prompts)
        template = {
            "fingerprint": template_fingerprint(self.tokenizer),
            "arguments": _recorded_arguments(self.chat_template_kwargs),
        }
        if self.of_prompts:
            # By their fingerprints, since the tools of thousands of prompts would fill the record.
            template["of_prompts"] = {
                prompt_fingerprint(prompt): fingerprint(_recorded_arguments(self.arguments_of(prompt)))
                for prompt in prompts
            }
        return {
            "settings": self.settings,
            "chat_template": template if has_chats else None,
            "logits_processor": [recorded_object("logits_processor", item) for item in self.logits_processor],
            "stopping_criteria": [recorded_object("stopping_criteria", item) for item in self.stopping_criteria],
            "policy": dict(policy),
            "tokenizer": tokenizer_identity(self.tokenizer),
            "reward_view": self.reward_view,
        }

    def arguments_of(self, prompt: Prompt) -> TemplateArguments:
        """Return the arguments of the chat template for a prompt."""
        return {**self.chat_template_kwargs, **self.own_arguments_of(prompt)}

    def own_arguments_of(self, prompt: Prompt) -> TemplateArguments:
        """Return the arguments of the chat template that only this prompt has."""
        return dict(self.of_prompts.get(prompt_fingerprint(prompt), {})) if self.of_prompts else {}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Refuse prompts that the policy would not read as described.

        Raises:
            `ArgumentError`: If the chat template leaves out tools, documents or a variable, or a prompt with such is
                a text.
        """
        check_template_takes(self.tokenizer, prompts, [self.arguments_of(prompt) for prompt in prompts])

    def context_columns(self, prompts: Sequence[Prompt]) -> dict[str, list]:
        """Return the columns `tools` and `documents` for a reward, one entry per prompt, where any prompt has some."""
        return context_columns([self.arguments_of(prompt) for prompt in prompts])

    def reader(self, prompt: Prompt) -> RewardReader:
        """Return the function that reads responses to a prompt as a reward sees them."""
        return RewardReader(text_tokenizer(self.tokenizer), self.prompt_ids(prompt), self._thinking)

    @cached_property
    def _thinking(self) -> Thinking | None:
        return None if self.reward_view == "full" else Thinking.of(text_tokenizer(self.tokenizer))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """
        Return the tokens of one prompt: a text as it is, a chat by its template with the assistant's turn opened.

        Raises:
            `ArgumentError`: If a chat has no chat template that takes it, or the prompt has no tokens.
        """
        return prompt_ids(self.tokenizer, prompt, **self.arguments_of(prompt))

    def limit(self, prompt_length: int) -> int:
        """Return the maximum number of tokens of a prompt of that length and its response together."""
        config = self.generation_config
        if config.max_new_tokens is not None:
            return prompt_length + config.max_new_tokens
        return int(config.max_length)

    def arguments(self, policy: Any) -> dict[str, Any]:
        """
        Return the keywords of `policy.generate` that draw as described, whatever that policy's generation config says.
        """
        config = copy.deepcopy(self.generation_config)
        criteria = StoppingCriteriaList(self.stopping_criteria)
        if config.stop_strings:
            # With a `custom_generate` callable transformers drops the tokenizer, without which stop strings raise.
            criteria.append(StopStringCriteria(text_tokenizer(self.tokenizer), config.stop_strings))
            config.stop_strings = None
        own = policy.generation_config
        # transformers replaces a setting that is None by the policy's own, unless None is passed by keyword.
        nones = {name: None for name in _OFF if getattr(config, name) is None and getattr(own, name, None) is not None}
        return {
            "generation_config": config,
            "logits_processor": LogitsProcessorList(self.logits_processor),
            "stopping_criteria": criteria,
            **nones,
        }


def _recorded_arguments(arguments: TemplateArguments) -> dict[str, Any]:
    """Return the arguments of a chat template as JSON."""
    return {name: as_json(f"chat_template_kwargs[{name!r}]", value) for name, value in sorted(arguments.items())}


def _resolved(policy: Any, arguments: Mapping[str, Any], given: GenerationConfig | None) -> GenerationConfig:
    arguments = {**arguments, **unset_is_off(policy, arguments, given)}
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    by_keyword = {name: plain_number(value) for name, value in arguments.items() if value is not None}
    unknown = {**config.update(**by_keyword), **{name: None for name in arguments if not hasattr(config, name)}}
    if unknown:
        raise ArgumentError(
            f"`{next(iter(unknown))}` must be a setting of transformers.GenerationConfig, got an unknown name. "
            "Correct or remove it."
        )
    if (arguments.get("num_return_sequences") or 1) != 1:
        raise ArgumentError(
            f"`num_return_sequences` must be left out where another argument is the number of responses, got "
            f"{arguments['num_return_sequences']!r}. Remove it."
        )
    if config.max_length is not None and config.max_new_tokens is None:
        arguments["max_new_tokens"] = None  # the caller's bound, not the policy's
    elif not _sets_length(config) and not _sets_length(policy.generation_config):
        config.max_new_tokens = _DEFAULT_LENGTH
    # A setting that the caller passes as None by keyword is None, whatever the policy's own is.
    nones = {name: None for name in arguments if getattr(config, name) is None}
    config, _ = policy._prepare_generation_config(config, **nones)
    if config.max_new_tokens is not None:
        config.max_length = None
    if not config.min_length or config.min_new_tokens is not None:
        config.min_length = None
    return config


def with_length(policy: PreTrainedModel, sampling: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Return the keywords of a draw with `max_new_tokens`, unless they or the policy's own settings set a length."""
    given = sampling.get("generation_config") or GenerationConfig()
    said = [*map(sampling.get, ("max_new_tokens", "max_length")), policy.generation_config.max_new_tokens]
    if _sets_length(given) or any(length is not None for length in said):
        return dict(sampling)
    return {**sampling, "max_new_tokens": max_new_tokens}


def _sets_length(config: GenerationConfig) -> bool:
    return config.max_new_tokens is not None or config.max_length is not None
