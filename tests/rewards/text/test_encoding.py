"""Test the tokens a reward model reads against tokens written by hand."""

from __future__ import annotations

import warnings

import pytest

from hf_itp.errors import ArgumentError, ItpWarning, RewardModelError
from hf_itp.rewards.text.encoding import PairEncoder
from tests.rewards.classifiers import ids_of, pair_tokenizer, plain_tokenizer
from tests.tiny import tiny_tokenizer

SYSTEM = {"role": "system", "content": "keep cold"}
USER = {"role": "user", "content": "how do i bake"}
ASSISTANT = {"role": "assistant", "content": "so"}
REFUSES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') "
    "}}{% endif %}<s> {{ message['role'] }} {{ message['content'] }} </s>{% endfor %}"
)
LEAVES_OUT_SYSTEM = (
    "{% for message in messages %}{% if message['role'] != 'system' %}<s> {{ message['role'] }} "
    "{{ message['content'] }} </s>{% endif %}{% endfor %}"
)
STRIPS = "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }} </s> {% endfor %}"


def with_template(template):
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encoded(tokenizer, prompt, response, **options):
    return list(PairEncoder(tokenizer, **({"pairs": False} | options)).encode([prompt], [response])[0].ids)


@pytest.mark.parametrize("prompt", ["how do i bake", [USER]])
def test_chat_template_renders_prompt_and_response(prompt):
    assert encoded(tiny_tokenizer(), prompt, "so") == ids_of("<s> user how do i bake </s> <s> assistant so </s>")


def test_encoder_with_a_chat_template_uses_it():
    tokenizer = pair_tokenizer()
    tokenizer.chat_template = STRIPS
    assert encoded(tokenizer, "how", "so", pairs=True) == ids_of("<s> how </s> so </s>")


def test_text_pair_has_types_and_separators():
    sequence = PairEncoder(pair_tokenizer(), pairs=True).encode([[USER]], ["so"])[0]
    assert list(sequence.ids) == ids_of("<s> how do i bake </s> so </s>")
    assert sequence.type_ids == (0, 0, 0, 0, 0, 0, 1, 1)


def test_text_prompt_and_response_are_concatenated_for_a_decoder():
    assert encoded(plain_tokenizer(), "how do i bake", " so") == ids_of("<s> how do i bake so")


def test_text_pair_needs_no_separators():
    assert encoded(tiny_tokenizer_without_template(), "how", "so", pairs=True) == ids_of("how so")


def tiny_tokenizer_without_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_chat_for_a_decoder_without_template_is_a_transcript():
    encoder = PairEncoder(plain_tokenizer(), pairs=False)
    assert encoder._encode_one([USER], "so") == encoder._encode_one("User: how do i bake\n\nAssistant: so", "")


def test_begin_token_is_not_doubled():
    tokenizer = plain_tokenizer()
    assert tokenizer("<s> how")["input_ids"] == ids_of("<s> <s> how")
    assert encoded(tokenizer, "<s> how", " so") == ids_of("<s> how so")
    # Rendered by a template and tokenized again, the same would happen.
    tokenizer.chat_template = STRIPS
    assert encoded(tokenizer, "how", "so") == ids_of("<s> how </s> so </s>")


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, LEAVES_OUT_SYSTEM], ids=["refused", "left out"])
def test_system_message_a_template_does_not_render_is_folded_into_the_first_user_turn(template):
    expected = ids_of("<s> user keep cold how do i bake </s> <s> assistant so </s>")
    assert encoded(with_template(template), [SYSTEM, USER], "so") == expected


def test_system_message_a_template_renders_stays_a_turn():
    expected = ids_of("<s> system keep cold </s> <s> user how do i bake </s> <s> assistant so </s>")
    assert encoded(tiny_tokenizer(), [SYSTEM, USER], "so") == expected


def test_other_refusals_of_the_template_are_named():
    template = "{% if messages | length > 2 %}{{ raise_exception('One turn only') }}{% endif %}"
    with pytest.raises(RewardModelError, match=r"user, assistant, user, assistant: One turn only. Pass `prompts` in"):
        encoded(with_template(template), [USER, ASSISTANT, USER], "so")


def test_end_token_is_appended_once():
    plain, chat = plain_tokenizer(), tiny_tokenizer()
    assert encoded(plain, "how", " so", append_eos=True) == ids_of("<s> how so </s>")
    assert encoded(plain, "how", " so </s>", append_eos=True) == ids_of("<s> how so </s>")
    assert encoded(chat, "how", "so", append_eos=True) == encoded(chat, "how", "so")


def test_end_token_needs_a_tokenizer_that_has_one():
    tokenizer = plain_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RewardModelError, match=r"Set `tokenizer.eos_token` or drop `append_eos`"):
        PairEncoder(tokenizer, pairs=False, append_eos=True)


@pytest.mark.parametrize(
    ("tokenizer", "pairs", "text"),
    [
        (tiny_tokenizer(), False, "<s> user how </s> <s> assistant </s>"),
        (pair_tokenizer(), True, "<s> how </s> </s>"),
        (plain_tokenizer(), False, "<s> how"),
    ],
    ids=["template", "pair", "concatenated"],
)
def test_empty_response_is_scored(tokenizer, pairs, text):
    assert encoded(tokenizer, "how", "", pairs=pairs) == ids_of(text)


def test_nothing_at_all_cannot_be_scored():
    with pytest.raises(
        ArgumentError, match=r"Prompt or response 0 must hold text, got two empty ones\. Leave the pair out"
    ):
        encoded(tiny_tokenizer_without_template(), "", "")


@pytest.mark.parametrize(
    ("tokenizer", "pairs", "text"),
    [
        (tiny_tokenizer(), False, "<s> bake </s> <s> assistant so on </s>"),
        (with_template(STRIPS), False, "<s> how do i bake </s> so on </s>"),
        (pair_tokenizer(), True, "<s> do i bake </s> so on </s>"),
        (plain_tokenizer(), False, "<s> you how do i bake so on"),
    ],
    ids=["template", "stripping template", "pair", "concatenated"],
)
def test_prompt_is_cut_on_the_left_and_the_response_kept(tokenizer, pairs, text):
    length = len(ids_of(text))
    prompt = "see you how do i bake" if pairs or tokenizer.chat_template != STRIPS else "you " * 9 + "how do i bake"
    encoder = PairEncoder(tokenizer, pairs=pairs, max_length=length)
    with pytest.warns(ItpWarning, match=rf"1 of 2 prompts were cut .* {length} tokens, so .* Raise `max_length`"):
        sequences = encoder.encode([prompt, "how"], [" so on", "so"])
    assert list(sequences[0].ids) == ids_of(text)


@pytest.mark.parametrize(
    ("tokenizer", "pairs", "text"),
    [
        (tiny_tokenizer(), False, "<s> you you you you </s>"),
        (pair_tokenizer(), True, "<s> </s> you you you </s>"),
        (plain_tokenizer(), False, "<s> you you you you you"),
    ],
    ids=["template", "pair", "concatenated"],
)
def test_response_is_cut_only_where_it_alone_is_too_long(tokenizer, pairs, text):
    encoder = PairEncoder(tokenizer, pairs=pairs, max_length=6)
    with pytest.warns(ItpWarning, match="6 tokens, and the response itself in 1 of them, so their rewards ignore"):
        sequences = encoder.encode(["how"], [" so" + " you" * 9])
    assert list(sequences[0].ids) == ids_of(text)


def test_several_cuts_are_one_warning():
    encoder = PairEncoder(plain_tokenizer(), pairs=False, max_length=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder.encode(["how do i bake"] * 3 + ["how"], [" so"] * 4)
    assert [str(warning.message)[:40] for warning in caught] == ["3 of 4 prompts were cut on the left to f"]


def test_tokenizer_settings_are_neither_used_nor_changed():
    tokenizer = plain_tokenizer()
    tokenizer._tokenizer.enable_truncation(2)
    tokenizer._tokenizer.enable_padding(length=20)
    tokenizer.truncation_side = "right"
    assert encoded(tokenizer, "how do i bake", " so") == ids_of("<s> how do i bake so")
    assert tokenizer.truncation_side == "right" and tokenizer.padding_side == "left"
