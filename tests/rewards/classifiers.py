"""
Tiny reward models and tokenizers, and their rewards computed one response at a time by the model's layers in float64.
"""

from __future__ import annotations

import copy
import functools
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.architectures import config_arguments
from tests.tiny import BOS, EOS, PAD, VOCABULARY_SIZE, tiny_model, tiny_tokenizer

DECODERS = ("llama", "qwen2", "gemma2", "mistral", "gpt2", "opt", "falcon", "jamba")
ENCODERS = ("bert", "roberta", "deberta-v2", "modernbert")
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
}


def tiny_classifier(
    architecture: str, num_labels: int = 1, of_tokens: bool = False, **config_overrides: Any
) -> PreTrainedModel:
    """Return a reward model in float32 and eval mode whose rewards for different words are far apart."""
    if architecture in ENCODERS:
        special = {"vocab_size": VOCABULARY_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
        arguments = LAYERS | special | {"max_position_embeddings": 64} | _ENCODER_SIZES[architecture]
    else:
        arguments = config_arguments(architecture)
    config = AutoConfig.for_model(architecture, **(arguments | {"num_labels": num_labels} | config_overrides))
    with torch.random.fork_rng(devices=[]):
        auto_class: Any = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
        model = auto_class.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(architecture.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.empty_like(weight).normal_(generator=generator)
            if weight.dim() >= 2 and not name.endswith("A_log"):
                weight.copy_(1.5 * noise / math.sqrt(weight.shape[-1]))
            else:
                weight.add_(0.1 * noise)
    return model


def plain_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer without a chat template that puts `<s>` before a text, as Llama's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like BERT's: `<s> text </s>` and `<s> text </s> text </s>`, the second text of type 1."""
    tokenizer = plain_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@functools.cache
def _ids_by_word() -> dict[str, int]:
    return tiny_tokenizer().get_vocab()


def ids_of(text: str) -> list[int]:
    """Return the ids of a text's words; special tokens are written out between spaces."""
    return [_ids_by_word()[word] for word in text.split()]


def decoder_reward(model: PreTrainedModel, text: str, label: int = 0) -> float:
    """Apply the head at the last token of one unpadded text."""
    with torch.no_grad():
        exact = _in_float64(model)
        hidden = exact.base_model(torch.tensor([ids_of(text)]), use_cache=False).last_hidden_state
        return float(hidden[0, -1] @ exact.score.weight[label])


def encoder_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Return [`pair_tokenizer`], without token types for the models whose tokenizers have none."""
    tokenizer = pair_tokenizer()
    if architecture != "bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def encoder_reward(model: PreTrainedModel, prompt: str, response: str, label: int = 0) -> float:
    """Return the model's own logit for one unpadded pair."""
    first, second = ids_of(f"<s> {prompt} </s>"), ids_of(f"{response} </s>")
    inputs = {"input_ids": torch.tensor([first + second])}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = torch.tensor([[0] * len(first) + [1] * len(second)])
    with torch.no_grad():
        return float(_in_float64(model)(**inputs).logits[0, label])


def _in_float64(model: PreTrainedModel) -> PreTrainedModel:
    # Experts multiply in groups, which torch does not do in float64.
    return model if model.config.model_type == "jamba" else copy.deepcopy(model).double()


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Save the model and its tokenizer in the folder; return the folder."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def saved_adapter(folder: Path, task_type: str | None) -> PreTrainedModel:
    """
    Save a LoRA adapter in `folder / "adapter"` and its base model in `folder / "base"`; return the merged model.

    The base is a language model with its tokenizer. With the task type `SEQ_CLS` the adapter brings its head. Draws
    from the global generator.
    """
    import peft

    base = AutoModelForCausalLM.from_pretrained(saved(folder / "base", tiny_model("llama"), tiny_tokenizer()))
    model = tiny_classifier("llama")
    model.model.load_state_dict(base.model.state_dict())
    model.config.name_or_path = model.name_or_path = str(folder / "base")
    config = peft.LoraConfig(task_type=task_type, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(folder / "adapter")
    tiny_tokenizer().save_pretrained(folder / "adapter")
    return adapted.merge_and_unload().eval()
