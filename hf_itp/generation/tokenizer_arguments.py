"""
Arguments of `generate` that need the tokenizer: stop strings and token healing.

transformers drops the tokenizer where decoding is a `custom_generate` callable (`_extract_generation_mode_kwargs`),
and then refuses both. So they are done here, from wherever they are set, and taken out of what transformers sees. Goes
when the tokenizer arrives there.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from hf_itp.errors import ArgumentError
from hf_itp.policies.checks import policy_tokenizer

# What the one token that heals a prompt has to be drawn without, whatever the model's own generation config says.
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
    The arguments with stop strings as a stopping criterion and prompts healed. What the caller gave is left as it is.

    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The policy's; looked up where it is needed.

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
                f"`stop_strings` needs a tokenizer whose tokens are pieces of text, got {stop_strings!r:.80} and one "
                f"that transformers cannot read so ({error}). Pass a stopping criterion of your own."
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
    """What transformers takes for a setting: the keyword, even `None`; the caller's config; the model's."""
    if name in arguments:
        return arguments[name]
    of_caller = getattr(arguments.get("generation_config"), name, None)
    return of_caller if of_caller is not None else getattr(model.generation_config, name, None)


def _unset_stop_strings(model: Any, arguments: dict[str, Any]) -> None:
    by_keyword = arguments.pop("stop_strings", None) is not None
    if arguments.get("generation_config") is None or by_keyword:
        # A keyword, even `None`, goes before the model's own config.
        arguments["stop_strings"] = None
        return
    config = arguments["generation_config"] = copy.deepcopy(arguments["generation_config"])
    config.stop_strings = None
    if model.generation_config.stop_strings is not None:
        # A keyword beside a config makes transformers warn, and what is `None` in it is filled from the model's.
        kind = type(config)
        config.__class__ = type(kind.__name__, (_WithoutStopStrings, kind), {})


class _WithoutStopStrings(GenerationConfig):
    """A config that takes up no stop strings."""

    def update(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        unused = super().update(*arguments, **settings)
        self.stop_strings = None
        return unused


def _healed(model: Any, arguments: dict[str, Any], tokenizer: Any) -> dict[str, torch.Tensor]:
    """`input_ids` under the name they came by, and their `attention_mask`."""
    name = "input_ids" if arguments.get("input_ids") is not None else "inputs"
    ids: Any = arguments.get(name)
    if model.config.is_encoder_decoder or arguments.get("inputs_embeds") is not None or not _are_ids(ids):
        raise ArgumentError(
            "`token_healing` needs token ids that the policy continues, got another input: the last token of the "
            "prompt is what is healed. Pass `input_ids` of a decoder-only model, or token_healing=False."
        )
    for special in ("bos_token_id", "pad_token_id"):
        if getattr(tokenizer, special) is None:
            raise ArgumentError(
                f"`token_healing` needs a tokenizer with a `{special.removesuffix('_id')}`, got one without, which "
                f"transformers cannot heal with. Set tokenizer.{special.removesuffix('_id')}, or pass "
                "token_healing=False."
            )
    mask = arguments.get("attention_mask")
    if mask is not None and (mask.shape != ids.shape or bool((mask[:, 1:] < mask[:, :-1]).any())):
        raise ArgumentError(
            "`attention_mask` must hide padding on the left and nothing else with `token_healing`, which tokenizes "
            "the prompts again. Tokenize with padding_side='left', or pass token_healing=False."
        )
    healed = _healer(model).heal_tokens(ids, tokenizer)
    # As `heal_tokens` does it. It writes padding over the first token of the text, so the ids do not say.
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    mask = tokenizer(texts, return_tensors="pt", padding=True).attention_mask.to(ids.device)
    moved = [key for key in ("position_ids", "token_type_ids") if arguments.get(key) is not None]
    if healed.shape != ids.shape and moved:
        raise ArgumentError(
            f"`{moved[0]}` belongs to prompts of {ids.shape[1]} tokens, but healed they have {healed.shape[1]}. "
            f"Remove `{moved[0]}`, or pass token_healing=False."
        )
    return {name: healed, "attention_mask": mask}


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, torch.Tensor) and ids.dim() == 2 and not ids.is_floating_point()


def _healer(model: Any) -> Any:
    """
    The model under a generation config of its own, so that neither the model's is changed nor its stop strings, its
    token healing or its number of sequences come into the token that heals. That token is the likeliest, for a prompt
    is one for all its candidates and owes nothing to chance.
    """
    healer = copy.copy(model)
    # A repository's own `generate` is an instance's, and would decode the one token by a strategy.
    vars(healer).pop("generate", None)
    healer.generation_config = copy.deepcopy(model.generation_config)
    healer.generation_config.update(**_PLAIN_TOKEN)
    return healer
