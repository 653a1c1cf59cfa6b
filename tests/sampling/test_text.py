"""Test a response's text against the tokenizer's decoding of prompt and response, for all kinds of tokenizers."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_itp.rewards import CallableReward
from hf_itp.sampling.text import ResponseReader, response_text
from tests.tiny import tiny_model

_WORDS = "the answer is four Answer no it was don n't ' , . ! s 're 've z"
WORDS = _WORDS.split(" ")
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def built(tokens: list[str], decoder, byte_level=False, clean_up=False, model=models.WordLevel):
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}
    if model is models.BPE:
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    else:
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if decoder is not None:
        inner.decoder = decoder
    if byte_level:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=clean_up,
    )  # fmt: skip


def llama():
    marked = [f"▁{word}" for word in WORDS] + [*WORDS, "▁", "é"] + BYTES
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return built(marked, decoders.Sequence(parts), model=models.BPE)


def t5():
    return built([f"▁{word}" for word in WORDS] + [*WORDS, "▁"], decoders.Metaspace(prepend_scheme="always"))


def byte_level():
    return built(sorted(pre_tokenizers.ByteLevel.alphabet()), decoders.ByteLevel(), True, model=models.BPE)


def word_piece():
    tokens = [*WORDS, *(f"##{word}" for word in WORDS)]
    return built(tokens, decoders.WordPiece(cleanup=True), clean_up=True)


def suffixed():
    return built([*WORDS, *(f"{word}</w>" for word in WORDS)], decoders.BPEDecoder("</w>"))


def without_decoder():
    return built(WORDS, None)


def far_reaching():
    """Return a tokenizer whose decoder looks at everything before, so that no prompt may be shortened."""
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Replace(Regex("^z.*Answer"), "")]
    return built([f"▁{word}" for word in WORDS] + WORDS, decoders.Sequence(parts))


KINDS = [llama, t5, byte_level, word_piece, suffixed, without_decoder, far_reaching]


def cut(whole: str, head: str) -> str:
    """Cut as the definition says, letter by letter."""
    while not whole.startswith(head):
        head = head[:-1]
    return whole[len(head) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 3, 20, 64, 65, 66, 200])
def test_text_is_that_of_the_whole_without_the_prompts(kind, length):
    """Holds for any tokens, for prompts of any length, and if the end of the prompt has only one kind of token."""
    tokenizer, drawn = kind(), random.Random(length)
    size = len(tokenizer)
    fillers = [range(size), range(1, 3), range(max(3, size - 8), size), [size - 1]]
    for trial in range(60):
        filler = fillers[trial % len(fillers)]
        prompt = [drawn.randrange(size) for _ in range(length // 2)]
        prompt += [drawn.choice(list(filler)) for _ in range(length - len(prompt))]
        response = [drawn.randrange(size) for _ in range(drawn.randrange(6))]
        head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + response))
        assert response_text(tokenizer, prompt, response) == cut(whole, head), (prompt, response)


@pytest.mark.parametrize("kind", [llama, t5, word_piece, suffixed, without_decoder])
def test_leading_space_is_kept(kind):
    tokenizer = kind()
    names = {llama: "▁{}", t5: "▁{}", word_piece: "{}", suffixed: "{}</w>", without_decoder: "{}"}
    ids = [tokenizer.convert_tokens_to_ids(names[kind].format(word)) for word in ("the", "answer", "is", "four")]
    whole = tokenizer.decode(ids)
    assert whole.strip() == "the answer is four"
    head = tokenizer.decode(ids[:3])
    assert head + response_text(tokenizer, ids[:3], ids[3:]) == whole


def test_character_begun_by_the_prompt_is_read_whole():
    tokenizer = byte_level()
    ids = tokenizer("café")["input_ids"]
    assert response_text(tokenizer, ids[:-1], ids[-1:]) == "é"
    assert response_text(tokenizer, [], ids) == "café"
    assert response_text(tokenizer, ids, []) == ""


def test_character_the_prompt_really_ends_in_is_not_taken_for_half_a_one():
    tokenizer = byte_level()
    prompt, both = (tokenizer(text)["input_ids"] for text in ("a\ufffd", "a\ufffdb"))
    assert response_text(tokenizer, prompt, both[len(prompt) :]) == "b"


@pytest.mark.parametrize("kind", [llama, t5, byte_level, word_piece, suffixed, without_decoder])
def test_long_prompt_is_not_decoded_once_per_response(kind, monkeypatch):
    tokenizer = kind()
    if kind is byte_level:
        prompt = tokenizer("The answer is zero. " * 500)["input_ids"]
    else:
        prompt = [tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(3))] * 9_000
        prompt += [
            tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_vocab() if "answer" in token
        ] * 200
    reader = ResponseReader(tokenizer, prompt)
    lengths = []
    decode = PreTrainedTokenizerFast._decode
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "_decode",
        lambda self, token_ids, **options: lengths.append(len(token_ids)) or decode(self, token_ids, **options),
    )  # fmt: skip
    for _ in range(5):
        reader(prompt[-3:])
    assert lengths and max(lengths) < 200


@pytest.mark.parametrize("kind", [llama, byte_level])
@pytest.mark.parametrize("early_rejection", [None, 0.5])
def test_reward_reads_what_was_written(kind, early_rejection):
    tokenizer = kind()
    policy = tiny_model("llama", vocab_size=len(tokenizer))
    words = range(3, 12)
    rows = torch.tensor([[2, 2, 1, *words[:3]], [1, *words[2:7]]])
    seen = []

    def spy(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(completion)) for completion in completions]

    output = policy.generate(
        rows, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]), strategy="best_of_n", reward_model=spy,
        prompts=["first", "second"], num_candidates=12, max_new_tokens=4, seed=0, tokenizer=tokenizer,
        early_rejection=early_rejection, eos_token_id=2, pad_token_id=2, return_dict_in_generate=True,
    )  # fmt: skip
    assert len(seen) >= 24
    prompts = {"first": rows[0, 2:].tolist(), "second": rows[1].tolist()}
    for prompt, completion, ids in seen:
        head, whole = (
            tokenizer.decode(ids_, skip_special_tokens=True) for ids_ in (prompts[prompt], prompts[prompt] + ids)
        )
        assert completion == cut(whole, head)
    lengths = CallableReward(spy)(["x"] * 2, ["ab", "c"], [torch.tensor([5]), torch.tensor([6])])
    assert lengths.tolist() == [2.0, 1.0] and output.rewards.shape == (2, 1)


def test_encoder_decoder_is_read_from_its_decoders_start():
    tokenizer = t5()
    policy = tiny_model("t5", vocab_size=len(tokenizer), decoder_start_token_id=2)
    seen = []

    def spy(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [0.0] * len(completions)

    policy.generate(
        torch.tensor([[5, 6, 7]]), strategy="best_of_n", reward_model=spy, num_candidates=6, max_new_tokens=4, seed=0,
        prompts=["first"], tokenizer=tokenizer, decoder_start_token_id=2, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    assert len(seen) == 6
    for completion, ids in seen:
        assert completion == tokenizer.decode([2, *ids], skip_special_tokens=True)
