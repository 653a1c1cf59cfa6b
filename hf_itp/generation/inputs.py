"""
What a call of `generate` continues: there has to be something.
"""

from __future__ import annotations

from typing import Any

from hf_itp.errors import ArgumentError

# How the names of inputs begin: tokens, embeddings, features of sound, pictures, what an encoder made of one of these.
_INPUTS = ("input", "pixel_values", "encoder_outputs")


def check_inputs(model: Any, arguments: dict[str, Any]) -> None:
    """
    Args:
        model (`PreTrainedModel`): The policy.
        arguments (`dict`): All arguments of `generate` by name.

    Raises:
        `ArgumentError`: If there is no input, or one without rows or tokens. Plain `generate` begins with the model's
            first token then, and a reward would judge answers to a prompt the policy never saw.
    """
    given = {
        name: value
        for name, value in arguments.items()
        if value is not None and (name.startswith(_INPUTS) or name == model.main_input_name)
    }
    if not given:
        raise ArgumentError(
            "`input_ids` is missing, so there is nothing to continue: the policy does not see `prompts`, which are "
            'for the reward. Pass **tokenizer(text, return_tensors="pt"), or for a chat '
            "**tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors='pt')."
        )
    for name, value in given.items():
        shape = tuple(getattr(value, "shape", ()))
        # Empty ids beside embeddings are how transformers itself says that there are none.
        is_empty = 0 in shape[:2] and (len(given) == 1 or name not in ("inputs", "input_ids"))
        if is_empty or shape[:1] == (0,):
            raise ArgumentError(
                f"`{name}` must hold at least one row of one token, got shape {shape}, so there is nothing to "
                "continue. Tokenize at least one prompt that is not empty, or begin with the policy's first token: "
                "input_ids=torch.tensor([[tokenizer.bos_token_id]])."
            )
