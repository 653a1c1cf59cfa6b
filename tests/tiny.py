"""
Tiny real models, a tokenizer and prompts for them: no network, no accelerator, the same weights in every process.

Knows nothing of `hf_itp`. The laws these models follow are in `tests.worlds`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import string
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.architectures import (
    ARCHITECTURES,
    BOS,
    DECODER_ONLY,
    ENCODER_DECODER,
    EOS,
    IMAGE,
    LEFT_PADDING_MATTERS,
    PAD,
    STATE_OUTSIDE_CACHE,
    VISION_LANGUAGE,
    VOCABULARY_SIZE,
    config_arguments,
)

__all__ = [
    "ARCHITECTURES",
    "BOS",
    "DECODER_ONLY",
    "ENCODER_DECODER",
    "EOS",
    "LEFT_PADDING_MATTERS",
    "PAD",
    "STATE_OUTSIDE_CACHE",
    "VISION_LANGUAGE",
    "VOCABULARY_SIZE",
    "PromptBoundReward",
    "left_padded_batch",
    "saved_policy",
    "tiny_model",
    "tiny_tokenizer",
    "vision_batch",
]

IMAGE_TOKENS = 4
# Word i has id i.
_WORDS = """
    <pad> <s> </s> <unk> user assistant system a all and ask at bake bread by can cold cook day do eat flour for go
    good have hot how i in is it jar keep let make me milk mix my no not of on one or out rest rise salt see so the
    then to use water way we what when yes you <image>
"""
_CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


# Models whose first draw of weights says little but one word.
_SEEDS = {"t5": 5, "bart": 3}


def tiny_model(architecture: str, *, seed: int = 0, entropy: float = 1.5, **config_overrides: Any) -> PreTrainedModel:
    """
    Return a model of two layers in float32 and eval mode, a new copy for every caller.

    The next token's entropy is near `entropy` nats on average. Every id may be drawn, `PAD` and `BOS` included: only
    `EOS` ends a response.
    """
    return copy.deepcopy(_built(architecture, seed, entropy, json.dumps(config_overrides, sort_keys=True)))


@functools.cache
def _built(architecture: str, seed: int, entropy: float, config_overrides: str) -> PreTrainedModel:
    config = AutoConfig.for_model(architecture, **(config_arguments(architecture) | json.loads(config_overrides)))
    if architecture in ENCODER_DECODER:
        auto_class = AutoModelForSeq2SeqLM
    elif architecture in VISION_LANGUAGE:
        auto_class = AutoModelForImageTextToText
    else:
        auto_class = AutoModelForCausalLM
    generator = torch.Generator().manual_seed(
        zlib.crc32(f"{architecture} {seed + _SEEDS.get(architecture, 0)}".encode())
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = auto_class.from_config(config, dtype=torch.float32).eval()
    _draw_weights(model, generator)
    _shape_next_token(model, entropy, generator)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )
    return model


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw weights large enough for attention to matter: with the usual 0.02 a narrow model's layers do little."""
    for name, weight in model.named_parameters():
        noise = torch.empty_like(weight).normal_(generator=generator)
        if weight.dim() >= 2 and not name.endswith("A_log"):
            weight.copy_(noise * _gain(name) / math.sqrt(weight.shape[-1]))
        else:
            weight.add_(0.1 * noise)


def _gain(name: str) -> float:
    # Encoder-decoders need a loud last token. Otherwise what the decoder sees of the encoder drowns it, and it repeats
    # one word for ever.
    if "shared" in name:
        return 16.0
    if "embed_positions" in name:
        return 4.0
    if "encoder_attn" in name:
        return 1.0
    return 1.0 if "embed" in name or "wte" in name else 1.5


@torch.no_grad()
def _shape_next_token(model: PreTrainedModel, entropy: float, generator: torch.Generator) -> None:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    prompts = torch.randint(3, min(vocabulary, 60), (16, 8), generator=generator)
    inputs = {"input_ids": prompts}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = prompts.flip(0)
    logits = model(**inputs).logits[:, 1:].double().flatten(0, 1)
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        logprobs = (middle * logits).log_softmax(-1)
        if -(logprobs.exp() * logprobs).sum(-1).mean() > entropy:
            low = middle
        else:
            high = middle
    weight = model.get_output_embeddings().weight
    weight.mul_(low)
    # The end token trades places with one of fitting probability, so that some responses end early and some do not.
    mean_probabilities = (low * logits).softmax(-1).mean(0)
    other = int((mean_probabilities - max(0.04, 1 / vocabulary)).abs().argmin())
    weight[[EOS, other]] = weight[[other, EOS]]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with `VOCABULARY_SIZE` words, padding on the left, and chats as `<s>role words</s>`."""
    vocabulary = {word: index for index, word in enumerate(_WORDS.split())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=256,
        chat_template=_CHAT_TEMPLATE,
    )


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one character per id, since stop strings need one that spells."""
    characters = ["<pad>", "<s>", "</s>", *(string.ascii_letters + string.digits)[:61]]
    tokenizer = Tokenizer(WordLevel({character: index for index, character in enumerate(characters)}, unk_token="9"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def saved_policy(folder: Path, architecture: str = "llama", **config_overrides: Any) -> Path:
    """Save model and tokenizer in `folder / architecture`; return that folder, which works as a model id."""
    path = Path(folder) / architecture
    tiny_model(architecture, **config_overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def left_padded_batch(
    lengths: Sequence[int], seed: int = 0, vocabulary_size: int = VOCABULARY_SIZE
) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` `(B, max(lengths))`; row `i` is `BOS` and `lengths[i] - 1` words."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.full((len(lengths), max(lengths)), PAD)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        words = torch.randint(3, min(vocabulary_size, 60), (length,), generator=generator)
        input_ids[row, -length:] = words
        input_ids[row, -length] = BOS
        attention_mask[row, -length:] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def vision_batch(architecture: str, lengths: Sequence[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return [`left_padded_batch`] for one of `VISION_LANGUAGE`, with a random picture after each first token."""
    if min(lengths) < IMAGE_TOKENS + 3:
        raise ValueError(f"A row needs room for {IMAGE_TOKENS + 3} tokens. Ask for longer prompts.")
    batch: dict[str, torch.Tensor] = left_padded_batch(lengths, seed)
    width = max(lengths)
    for row, length in enumerate(lengths):
        start = width - length + 1
        batch["input_ids"][row, start] = 61
        batch["input_ids"][row, start + 1 : start + 1 + IMAGE_TOKENS] = IMAGE
    generator = torch.Generator().manual_seed(seed)
    if architecture == "qwen2_vl":
        # 16 patches of 3 x 1 x 2 x 2 values each, merged by two in both directions.
        batch["pixel_values"] = torch.randn(len(lengths) * 16, 12, generator=generator)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(lengths))
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    else:
        batch["pixel_values"] = torch.randn(len(lengths), 3, 8, 8, generator=generator)
    if architecture == "gemma3":
        batch["token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    return batch


class PromptBoundReward:
    """
    A reward in TRL's signature that no other prompt and no other response has: a hash of both.

    Shows that prompts and responses stayed aligned: recompute [`reward`] from what came back and compare exactly. The
    value is a multiple of 2**-24 in [0, 1), so float32 holds it without rounding. `calls` records what was asked.
    """

    __name__ = "prompt_bound_reward"

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[Any]]] = []

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float]:
        self.calls.append((list(prompts), list(completions)))
        return [self.reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    @staticmethod
    def reward(prompt: Any, completion: Any) -> float:
        # Of the words of a response: the tokenizer above writes a space before each but the first of a text.
        if isinstance(completion, str):
            words: Any = completion.split()
        else:
            words = [[message["role"], message["content"].split()] for message in completion]
        digest = hashlib.sha256(json.dumps([prompt, words], sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:3], "big") / 2**24
