"""
Check that a call of `generate` has something to continue.
"""

from __future__ import annotations

from typing import Any

from hf_itp.errors import ArgumentError

# Starts of the names of inputs: tokens, embeddings, features of sound; pictures; outputs of an encoder.
_INPUTS = ("input", "pixel_values", "encoder_outputs")


def check_inputs(model: Any, arguments: dict[str, Any]) -> None:
    """
    Refuse a call without input.

    Plain `generate` would start from the model's first token, and the reward would judge answers to a prompt that the
    policy never saw.

    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name.

    Raises:
        `ArgumentError`: If there is no input, or one without rows or tokens.
    """
    given = {
        name: value
        for name, value in arguments.items()
        if value is not None and (name.startswith(_INPUTS) or name == model.main_input_name)
    }
    if not given:
        raise ArgumentError(
            "`input_ids` must be given, got nothing to continue: the policy does not see `prompts`, which are for the "
            'reward. Pass **tokenizer(text, return_tensors="pt"), or for a chat '
            "**tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors='pt')."
        )
    for name, value in given.items():
        shape = tuple(getattr(value, "shape", ()))
        # transformers itself puts empty ids beside embeddings.
        is_empty = 0 in shape[:2] and (len(given) == 1 or name not in ("inputs", "input_ids"))
        if is_empty or shape[:1] == (0,):
            raise ArgumentError(
                f"`{name}` must hold at least one row of one token, got shape {shape}. Tokenize at least one prompt "
                "that is not empty, or start from the policy's first token: "
                "input_ids=torch.tensor([[tokenizer.bos_token_id]])."
            )
