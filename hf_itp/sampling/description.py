"""
Describe a draw: everything that decides which responses a policy gives to a prompt, resolved and ready to compare.

References, rollouts, pools and `generate` resolve their settings here. Knows nothing of rewards, nor of the policy's
weights: whoever records a draw adds their identity.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria
from transformers.utils import get_json_schema

from hf_itp.errors import ArgumentError
from hf_itp.policies.checks import check_generation_config, check_model
from hf_itp.sampling.recorded import (
    as_json,
    plain_number,
    recorded_object,
    template_fingerprint,
    text_tokenizer,
    tokenizer_identity,
)
from hf_itp.sampling.settings import unset_is_off

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
    tokens, what processes the logits and what ends a response. A system prompt is a message of the chat, so it belongs
    to the prompt.

    Args:
        generation_config (`GenerationConfig`): Resolved settings: none is left to the policy that draws.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Turns prompts into tokens.
        chat_template_kwargs (`dict`): Arguments of its chat template, `tools` among them.
        logits_processor (`LogitsProcessorList`), stopping_criteria (`StoppingCriteriaList`): The caller's own.
    """

    generation_config: GenerationConfig
    tokenizer: Any
    chat_template_kwargs: dict[str, Any]
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList

    @classmethod
    def of(
        cls,
        policy: Any,
        tokenizer: Any,
        sampling: Mapping[str, Any],
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """
        Resolve the settings of a draw.

        Args:
            policy (`PreTrainedModel`): Draws the responses; its generation config has the settings nobody overrides.
            tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer.
            sampling (`dict`): Keywords of `generate`: settings, `generation_config`, `logits_processor` and
                `stopping_criteria`.
            chat_template_kwargs (`dict`, *optional*): Passed to the chat template, e.g. `{"enable_thinking": False}`.

        Raises:
            `ArgumentError`: If a keyword is not a setting of a draw, or asks for something other than independent
                samples.
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
        description = cls(config, tokenizer, dict(chat_template_kwargs or {}), processors, criteria)
        description.template_arguments()  # refused now if they cannot be recorded
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
            "arguments": self.template_arguments(),
        }
        return {
            "settings": self.settings,
            "chat_template": template if has_chats else None,
            "logits_processor": [recorded_object("logits_processor", item) for item in self.logits_processor],
            "stopping_criteria": [recorded_object("stopping_criteria", item) for item in self.stopping_criteria],
            "policy": dict(policy),
            "tokenizer": tokenizer_identity(self.tokenizer),
        }

    def template_arguments(self) -> dict[str, Any]:
        """Return the arguments of the chat template, as JSON."""
        return {
            name: as_json(f"chat_template_kwargs[{name!r}]", _tools(value) if name == "tools" else value)
            for name, value in sorted(self.chat_template_kwargs.items())
        }

    def prompt_ids(self, prompt: str | list[dict]) -> list[int]:
        """
        Return the tokens of one prompt: a text as it is, a chat by its template with the assistant's turn opened.

        Raises:
            `ArgumentError`: If a chat has no chat template that takes it, or the prompt has no tokens.
        """
        return prompt_ids(self.tokenizer, prompt, **self.chat_template_kwargs)

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


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """
    Return where two recorded draws differ: name and both values.

    Of the policies only dtype and adapters are compared; the identity of their weights decides if they are the same.
    """
    found: list[tuple[str, Any, Any]] = []

    def compare(prefix: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Sequence[str]) -> None:
        found.extend(
            (prefix + name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)
        )

    ours, theirs = one["settings"], other["settings"]
    compare("", ours, theirs, sorted({*ours, *theirs}))
    compare("", one, other, ["logits_processor", "stopping_criteria"])
    if one["chat_template"] and other["chat_template"]:
        compare("chat_template ", one["chat_template"], other["chat_template"], ["fingerprint"])
        ours, theirs = one["chat_template"]["arguments"], other["chat_template"]["arguments"]
        compare("chat_template_kwargs ", ours, theirs, sorted({*ours, *theirs}))
    compare("tokenizer ", one["tokenizer"], other["tokenizer"], ["fingerprint"])
    compare("policy ", one["policy"], other["policy"], ["dtype", "adapters"])
    return found


def prompt_ids(tokenizer: Any, prompt: str | list[dict], **template_arguments: Any) -> list[int]:
    """
    Return the tokens of one prompt as [`DrawDescription.prompt_ids`] does, by a tokenizer or processor.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(text=[prompt])["input_ids"][0])
    elif (template_arguments.get("chat_template") or tokenizer.chat_template) is None:
        raise ArgumentError(
            f"`prompts` must be texts, since the tokenizer has no chat template, got {prompt!r:.80}. Render the chats "
            "or set `tokenizer.chat_template`."
        )
    else:
        try:
            encoded: Any = tokenizer.apply_chat_template(
                [prompt], add_generation_prompt=True, tokenize=True, return_dict=True, **template_arguments
            )
        except TemplateError as error:
            raise ArgumentError(
                f"`prompts` must hold chats that the policy's chat template takes, got {prompt!r:.80}, which it "
                f"refuses ({error}). Correct the chat or leave it out."
            ) from error
        ids = list(encoded["input_ids"][0])
    if not ids:
        raise ArgumentError(f"`prompts` must hold at least one token each, got {prompt!r}. Leave it out.")
    return ids


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


def _tools(tools: Any) -> Any:
    return [get_json_schema(tool) if inspect.isfunction(tool) else tool for tool in tools or []]
