"""
Apply the arguments of `generate` that need the tokenizer: stop strings and token healing.

For a `custom_generate` callable transformers drops the tokenizer (`_extract_generation_mode_kwargs`) and then refuses
both. So they are applied here, wherever they are set, and hidden from transformers. Remove this file once transformers
passes the tokenizer on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from hf_itp.errors import ArgumentError
from hf_itp.policies.checks import policy_tokenizer

# Settings of the one token that heals a prompt, whatever the model's own generation config says.
_PLAIN_TOKEN = {
    "token_healing": False,
    "stop_strings": None,
    "num_return_sequences": 1,
    "num_beams": 1,
    "return_dict_in_generate": False,
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    "do_sample": False,
}


def without_need_of_tokenizer(
    model: Any, arguments: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """
    Return the arguments with stop strings as a stopping criterion and prompts healed. The caller's own stay unchanged.

    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The policy's. Looked up if needed.

    Raises:
        `ArgumentError`: If the input cannot be healed.
        `LoadError`: If the tokenizer is needed and cannot be found.
    """
    arguments = dict(arguments)
    stop_strings = _setting(model, arguments, "stop_strings")
    healing = _setting(model, arguments, "token_healing")
    if stop_strings is None and not healing:
        return arguments
    if tokenizer is None:
        tokenizer = policy_tokenizer(model)
    if stop_strings is not None:
        criteria = arguments.get("stopping_criteria")
        try:
            criterion = StopStringCriteria(tokenizer, stop_strings)
        except ValueError as error:
            raise ArgumentError(
                f"`stop_strings` must come with a tokenizer whose tokens are pieces of text, got {stop_strings!r:.80} "
                f"and one that transformers cannot use for it ({error}). Pass a stopping criterion of your own."
            ) from error
        arguments["stopping_criteria"] = StoppingCriteriaList([*([] if criteria is None else criteria), criterion])
        _unset_stop_strings(model, arguments)
    if healing:
        arguments.update(_healed(model, arguments, tokenizer))
        if arguments.pop("token_healing", None) is None and arguments.get("generation_config") is not None:
            config = arguments["generation_config"] = copy.deepcopy(arguments["generation_config"])
            config.token_healing = False
        else:
            arguments["token_healing"] = False
    return arguments


def _setting(model: Any, arguments: dict[str, Any], name: str) -> Any:
    """Return a setting as transformers resolves it: the keyword, even `None`; the caller's config; the model's."""
    if name in arguments:
        return arguments[name]
    of_caller = getattr(arguments.get("generation_config"), name, None)
    return of_caller if of_caller is not None else getattr(model.generation_config, name, None)


def _unset_stop_strings(model: Any, arguments: dict[str, Any]) -> None:
    by_keyword = arguments.pop("stop_strings", None) is not None
    if arguments.get("generation_config") is None or by_keyword:
        # A keyword, even `None`, takes precedence over the model's own config.
        arguments["stop_strings"] = None
        return
    config = arguments["generation_config"] = copy.deepcopy(arguments["generation_config"])
    config.stop_strings = None
    if model.generation_config.stop_strings is not None:
        # transformers warns of a keyword beside a config, and fills what is `None` in a config from the model's.
        kind = type(config)
        config.__class__ = type(kind.__name__, (_WithoutStopStrings, kind), {})


class _WithoutStopStrings(GenerationConfig):
    """Config whose stop strings stay `None`."""

    def update(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        unused = super().update(*arguments, **settings)
        self.stop_strings = None
        return unused


def _healed(model: Any, arguments: dict[str, Any], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Return the healed `input_ids`, under the name they were passed by, and their `attention_mask`."""
    name = "input_ids" if arguments.get("input_ids") is not None else "inputs"
    ids: Any = arguments.get(name)
    if model.config.is_encoder_decoder or arguments.get("inputs_embeds") is not None or not _are_ids(ids):
        raise ArgumentError(
            "`token_healing` must come with token ids that the policy continues, got another input: it replaces the "
            "last token of the prompt. Pass `input_ids` of a decoder-only model, or token_healing=False."
        )
    for special in ("bos_token_id", "pad_token_id"):
        if getattr(tokenizer, special) is None:
            raise ArgumentError(
                f"`token_healing` must come with a tokenizer with a `{special.removesuffix('_id')}`, got one without. "
                f"Set tokenizer.{special.removesuffix('_id')}, or pass token_healing=False."
            )
    mask = arguments.get("attention_mask")
    if mask is not None and (mask.shape != ids.shape or bool((mask[:, 1:] < mask[:, :-1]).any())):
        raise ArgumentError(
            "`attention_mask` must hide only padding on the left with `token_healing`, which tokenizes the prompts "
            "again, got another mask. Tokenize with padding_side='left', or pass token_healing=False."
        )
    healed = _healer(model).heal_tokens(ids, tokenizer)
    # Tokenize as `heal_tokens` does: it writes padding over the first token of the text, so its ids do not tell.
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    mask = tokenizer(texts, return_tensors="pt", padding=True).attention_mask.to(ids.device)
    moved = [key for key in ("position_ids", "token_type_ids") if arguments.get(key) is not None]
    if healed.shape != ids.shape and moved:
        raise ArgumentError(
            f"`{moved[0]}` must fit the healed prompts of {healed.shape[1]} tokens, got {ids.shape[1]}. Remove "
            f"`{moved[0]}`, or pass token_healing=False."
        )
    return {name: healed, "attention_mask": mask}


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, torch.Tensor) and ids.dim() == 2 and not ids.is_floating_point()


def _healer(model: Any) -> Any:
    """
    Return the model with a generation config that takes the likeliest token, without stop strings, healing or several
    sequences.

    All candidates share a prompt, so nothing in it is drawn at random.
    """
    healer = copy.copy(model)
    # A repository's own `generate` is set on the instance, and would decode the one token by a strategy.
    vars(healer).pop("generate", None)
    healer.generation_config = copy.deepcopy(model.generation_config)
    healer.generation_config.update(**_PLAIN_TOKEN)
    return healer
