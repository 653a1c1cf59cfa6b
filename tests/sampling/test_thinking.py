"""
Test which part of a response a reward reads, on the chat templates of real models and by transformers' own parser.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from hf_itp import ItpWarning, embedded
from hf_itp.errors import ArgumentError
from hf_itp.sampling.thinking import RewardReader, Thinking, check_reward_view
from tests.tiny import tiny_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHAT = [{"role": "user", "content": "What is 2 + 2? Do not write </think>."}]
HARMONY = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>", "<|call|>"]
ANALYSIS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
DECLARED = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<why>", "close": "</why>", "content": "text"},
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}


def tokenizer_of(template=None, special=()):
    tokenizer = AutoTokenizer.from_pretrained(embedded.policy_path())
    if template is not None:
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def final(tokenizer, response, **template):
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, **template)["input_ids"]
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    reader = RewardReader(tokenizer, prompt, Thinking.of(tokenizer))
    assert RewardReader(tokenizer, prompt)(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    return reader(ids)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>\nhm\n</think>\n\nIt is 4.<|im_end|>", "It is 4."),
        ("It is 4.<|im_end|>", "It is 4."),
        ("<think>\nhm\n</think>\n\n    return 4", "    return 4"),
        ("<think>hm</think> 4", " 4"),
        ("Well. <think>hm</think>4", "Well. 4"),
        ("<think>a</think>4<think>b</think>5", "45"),
        ("<think>\nhm", None),
        ("4? <think>\nhm", None),
        ("<think>\nhm</thi", None),
        ("<think>\nhm</think>\n\n<|im_end|>", None),
        ("", ""),
    ],
)
def test_markers_of_qwen3(response, expected):
    assert final(tokenizer_of("qwen3"), response) == expected


def test_thinking_switched_off_is_closed_in_the_prompt():
    assert final(tokenizer_of("qwen3"), "It is 4.<|im_end|>", enable_thinking=False) == "It is 4."


@pytest.mark.parametrize(
    ("response", "expected"),
    [("hm\n</think>\n\nIt is 4.", "It is 4."), ("hm, so 4", None), ("", None), ("hm</think>", None)],
)
def test_opening_marker_at_the_end_of_the_prompt(response, expected):
    """DeepSeek-R1's template begins the thinking."""
    assert final(tokenizer_of("deepseek_r1_distill"), response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f"{ANALYSIS}<|channel|>final<|message|>It is 4.<|return|>", "It is 4."),
        ("<|channel|>final<|message|>It is 4.", "It is 4."),
        (ANALYSIS, None),
        ("<|channel|>analysis<|message|>hm", None),
        (f"{ANALYSIS}<|channel|>fin", None),
        ("no channel at all", "no channel at all"),
    ],
)
def test_channels_of_gpt_oss(response, expected):
    assert final(tokenizer_of("gptoss", HARMONY), response) == expected


def test_call_of_a_tool_is_a_final_part():
    call = 'to=functions.get<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    found = final(tokenizer_of("gptoss", HARMONY), f"{ANALYSIS} {call}")
    assert "functions.get" in found and found.endswith('{"a": 1}') and "hm" not in found


def test_markers_that_are_special_tokens():
    tokenizer = tokenizer_of(special=["[THINK]", "[/THINK]"])
    assert final(tokenizer, "[THINK]hm[/THINK]It is 4.<|im_end|>") == "It is 4."
    assert final(tokenizer, "[THINK]hm") is None


@pytest.mark.parametrize("response", ["<why>hm</why>It is 4.<|im_end|>", "It is 4.<|im_end|>"])
def test_declared_template_goes_first_and_agrees_with_the_parser_of_transformers(response):
    tokenizer = tokenizer_of("qwen3")
    tokenizer.response_template = DECLARED
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    parsed = tokenizer.parse_response(response, prefix=prompt)
    assert final(tokenizer, response) == parsed["content"] == "It is 4."
    assert final(tokenizer, "<why>hm") is None
    assert final(tokenizer, "<think>no marker here</think>4") == "<think>no marker here</think>4"


def test_declaration_that_is_none_is_refused():
    tokenizer = tokenizer_of()
    tokenizer.response_template = {"fields": {}}
    with pytest.raises(ArgumentError, match=r"`tokenizer.response_template` must be valid"):
        Thinking.of(tokenizer)


def test_markers_that_only_the_chat_template_shows():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }} {% if m.reasoning_content %}so {{ m.reasoning_content }} then "
        "{% endif %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant {% endif %}"
    )
    prompt = tokenizer("<s> user how </s> <s> assistant")["input_ids"]
    reader = RewardReader(tokenizer, prompt, Thinking.of(tokenizer))
    assert reader(tokenizer("so mix it then bake it </s>")["input_ids"]).split() == ["bake", "it"]
    assert reader(tokenizer("so mix it")["input_ids"]) is None


def test_tokenizer_that_says_nothing_is_named_and_the_common_markers_count():
    tokenizer = tokenizer_of()
    with pytest.warns(ItpWarning, match="neither the policy's tokenizer nor its chat template says"):
        thinking = Thinking.of(tokenizer)
    ids = tokenizer("<think>hm</think>4", add_special_tokens=False)["input_ids"]
    assert RewardReader(tokenizer, [], thinking)(ids) == "4"


def test_view_of_another_name_is_refused():
    with pytest.raises(ArgumentError, match="`reward_view` must be one of 'full', 'final', got 'end'"):
        check_reward_view("end")
