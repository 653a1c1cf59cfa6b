"""
Test tools, documents and variables of chat templates at every door, against templates rendered by hand.
"""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import pipeline
from transformers.utils import get_json_schema

from hf_itp import ItpWarning, Policy, RewardCalibrator
from hf_itp.calibration.belonging import check_draw
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpError
from hf_itp.policies.chat_template import (
    arguments_in_rows,
    arguments_of_prompts,
    list_in_file,
    prompt_ids,
    template_arguments,
)
from hf_itp.pools.file import read_pool
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards import ProcessRewardModel, RewardEnsemble, RewardModel
from tests.rewards.classifiers import decoder_reward, tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

# Writes every field that a chat may have, in the words of the tiny tokenizer.
EVERYTHING = (
    "{% for t in tools or [] %}<s>{{ t.function.name }}{% endfor %}"
    "{% for d in documents or [] %}<s>{{ d.text }}{% endfor %}"
    "{% if style is defined %}<s>{{ style }}{% endif %}"
    "{% for m in messages %}<s>{{ m.role }} {{ m.name }} {{ m.tool_call_id }} {{ m.reasoning_content }} "
    "{{ m.thinking }} {{ m.content }}{% for c in m.tool_calls or [] %} {{ c.function.name }} "
    "{{ c.function.arguments.day }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant{% endif %}"
)
CHATS = [[{"role": "user", "content": text}] for text in ("how hot is it", "what is salt")]


def bake(day: str):
    """
    Bake bread.

    Args:
        day: When.
    """


def tool(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


def tokenizer_with(template=EVERYTHING):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def policy(template=EVERYTHING):
    return Policy(tiny_model("llama"), tokenizer_with(template))


def watched(loaded):
    """Return the rows that the policy runs first."""
    rows = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"]), with_kwargs=True
    )
    return rows


def generated(loaded, reward, prompts=CHATS, **arguments):
    settings = {"strategy": "best_of_n", "num_candidates": 3, "max_new_tokens": 3, "seed": 0}
    return loaded.generate(prompts, reward_model=reward, **(settings | arguments))


class Columns:
    """Reward that notes what it is passed beside the pairs."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, completions, completion_ids, **columns):
        for place, prompt in enumerate(prompts):
            row = {name: column[place] for name, column in columns.items() if isinstance(column, list)}
            self.seen.append((prompt[0]["content"], row))
        return [float(sum(ids)) for ids in completion_ids]


def by_hand(chat, **arguments):
    text = tokenizer_with().apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **arguments)
    return tokenizer_with()(text, add_special_tokens=False)["input_ids"]


def first_rows(loaded, **arguments):
    output = loaded.generate(
        CHATS, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, **arguments
    ).sequences  # plain `generate` pads on the left
    return [[token for token in row.tolist() if token != 0] for row in output[:, :-1]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"tools": [bake]},
        {"tools": [tool("mix")], "documents": [{"text": "cold milk"}]},
        {"chat_template_kwargs": {"style": "good", "tools": [tool("mix")]}},
    ],
)
def test_policy_reads_what_the_template_writes(arguments):
    known = {**arguments.get("chat_template_kwargs", {}), **arguments}
    known.pop("chat_template_kwargs", None)
    assert first_rows(policy(), **arguments) == [by_hand(chat, **known) for chat in CHATS]


def test_each_chat_may_have_its_own_arguments():
    own = [{"tools": [tool("mix")]}, {"style": "good"}]
    expected = [by_hand(chat, **arguments) for chat, arguments in zip(CHATS, own, strict=True)]
    assert first_rows(policy(), chat_template_kwargs=own) == expected
    common = first_rows(policy(), chat_template_kwargs=own, documents=[{"text": "salt"}])
    assert common == [
        by_hand(chat, documents=[{"text": "salt"}], **arguments) for chat, arguments in zip(CHATS, own, strict=True)
    ]


def test_reward_gets_tools_and_documents_of_its_prompt():
    reward = Columns()
    generated(policy(), reward, chat_template_kwargs=[{"tools": [bake]}, {"documents": [{"text": "salt"}]}])
    assert len(reward.seen) == 6
    for text, row in reward.seen:
        if text == "how hot is it":
            assert row == {"tools": [get_json_schema(bake)], "documents": None}
        else:
            assert row == {"tools": None, "documents": [{"text": "salt"}]}


def test_reward_model_renders_what_its_template_knows():
    model, chat = tiny_classifier("llama"), CHATS[0]
    reward = RewardModel(model, tokenizer_with())
    tools = [[tool("mix")], [tool("bake")], None]
    found = reward([chat] * 3, ["so"] * 3, tools=tools, documents=[[{"text": "milk"}], None, None])
    whole = [*chat, {"role": "assistant", "content": "so"}]
    texts = [
        tokenizer_with().apply_chat_template(whole, tokenize=False, tools=t, documents=d)
        for t, d in zip(tools, [[{"text": "milk"}], None, None], strict=True)
    ]
    expected = [decoder_reward(model, text.replace("<s>", " <s> ").replace("</s>", " </s> ")) for text in texts]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert len(set(found.tolist())) == 3
    assert RewardEnsemble([reward])([chat] * 3, ["so"] * 3, tools=tools).unique().numel() == 3
    # As data sets of TRL may hold them.
    assert reward([chat], ["so"], tools=[json.dumps([tool("mix")])]) == reward([chat], ["so"], tools=[[tool("mix")]])


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("kind", ["template", "text", "steps"])
def test_reward_model_that_leaves_something_out_says_so_by_name(name, kind):
    tokenizer = tiny_tokenizer() if kind != "text" else tokenizer_with(None)
    if kind == "steps":
        answers = {"good_token": "good", "bad_token": "not", "step_token": "so"}
        reward = ProcessRewardModel(tiny_model("llama"), tokenizer, separator=" ", **answers)
    else:
        reward = RewardModel(tiny_classifier("llama"), tokenizer)
    with pytest.warns(ItpWarning, match=f"leaves out `{name}`"):
        reward.check(CHATS, **{name: [[{**tool("mix"), "text": "salt"}]] * 2})
    reward.check(CHATS, **{name: [None, []]})


@pytest.mark.parametrize(
    ("template", "arguments", "error", "message"),
    [
        (None, {"tools": [bake]}, ArgumentError, "`tools` must be written by the policy's chat template"),
        (None, {"documents": [{"text": "a"}]}, ArgumentError, "`documents` must be written by"),
        (None, {"chat_template_kwargs": {"enable_thinking": False}}, ArgumentError, "got 'enable_thinking', which"),
        (None, {"chat_template_kwargs": [{}, {"style": "good"}]}, ArgumentError, "got 'style', which"),
        (EVERYTHING, {"chat_template_kwargs": [{}]}, ArgumentError, r"one per prompt \(2\)"),
        (EVERYTHING, {"chat_template_kwargs": "style"}, ArgumentError, "one dict, or one per prompt"),
        (EVERYTHING, {"chat_template_kwargs": {"tokenize": False}}, ArgumentError, "got 'tokenize', which is set"),
        (EVERYTHING, {"tools": [bake], "chat_template_kwargs": {"tools": [bake]}}, ArgumentError, "given once"),
        (EVERYTHING, {"tools": [lambda day: day]}, ArgumentError, "functions with a docstring"),
        (EVERYTHING, {"tools": [3]}, ArgumentTypeError, "`tools` must be a list of dicts, got 3"),
        (EVERYTHING, {"tools": {"name": "a"}}, ArgumentTypeError, "`tools` must be a list of dicts"),
        (EVERYTHING, {"documents": "some text"}, ArgumentError, "`documents` must be a list, or one as JSON"),
        (EVERYTHING, {"tools": [bake], "prompts": ["how"]}, ArgumentError, "`tools` must come with chats"),
    ],
)
def test_what_the_policy_would_not_see_costs_no_token(template, arguments, error, message):
    loaded = policy() if template else Policy(tiny_model("llama"), tiny_tokenizer())
    rows = watched(loaded)
    with pytest.raises(error, match=message):
        generated(loaded, Columns(), **arguments)
    assert rows == []


def test_tools_through_a_pipeline_reach_policy_and_reward():
    generator = pipeline("text-generation", model=tiny_model("llama"), tokenizer=tokenizer_with())
    arguments = {"strategy": "best_of_n", "num_candidates": 3, "max_new_tokens": 3, "seed": 0}
    arguments["tokenizer"] = generator.tokenizer
    reward = Columns()
    generator(CHATS[0], prompts=[CHATS[0]], tools=[tool("mix")], reward_model=reward, **arguments)
    assert [row for _, row in reward.seen] == [{"tools": [tool("mix")]}] * 3
    generator.tokenizer.chat_template = tiny_tokenizer().chat_template
    with pytest.raises(ArgumentError, match="`tools` must be written by"):
        generator(CHATS[0], prompts=[CHATS[0]], tools=[tool("mix")], reward_model=reward, **arguments)


AGENT = [
    {"role": "user", "content": "how hot is it", "name": "you"},
    {
        "role": "assistant", "content": "so", "reasoning_content": "in cold water", "thinking": "use salt",
        "tool_calls": [{"type": "function", "function": {"name": "bake", "arguments": {"day": "one"}}}],
    },
    {"role": "tool", "name": "bake", "tool_call_id": "jar", "content": "hot"},
]  # fmt: skip


def test_every_field_of_a_conversation_reaches_template_and_reward():
    """By hand, field after field; a function gets the chat itself."""
    rendered = (
        "<s> user you how hot is it </s> <s> assistant in cold water use salt so bake one </s> "
        "<s> tool bake jar hot </s> <s> assistant"
    )
    ids = tiny_tokenizer()(rendered)["input_ids"]
    assert prompt_ids(tokenizer_with(), AGENT) == ids
    loaded = policy()
    assert loaded.generate([AGENT], max_new_tokens=1, do_sample=False).sequences[0, :-1].tolist() == ids
    model, seen, known = tiny_classifier("llama"), [], rendered.replace(" tool ", " <unk> ")
    reward = RewardModel(model, tokenizer_with())
    assert reward([AGENT], ["yes"]).item() == pytest.approx(decoder_reward(model, f"{known} yes </s>"), abs=1e-4)

    def mine(prompts, completions, **kwargs):
        seen.extend(prompts)
        return [0.0] * len(completions)

    generated(loaded, mine, [AGENT])
    assert seen == [AGENT] * 3


def fitted(prompts=CHATS, **options):
    settings = {"num_reference": 4, "tokenizer": tokenizer_with(), "max_new_tokens": 4, "progress": False} | options
    return RewardCalibrator.fit(tiny_model("llama"), Columns(), prompts, **settings)


def test_calibration_draws_with_and_records_the_arguments_of_each_prompt(tmp_path):
    own = [{"tools": [bake]}, None]
    calibrator = fitted(chat_template_kwargs=own, documents=[{"text": "salt"}], output_dir=tmp_path)
    rows = read_pool(tmp_path / "reference_pool.jsonl")
    assert [row.get("chat_template_kwargs") for row in rows] == [{"tools": [get_json_schema(bake)]}, None]
    assert calibrator.draw["chat_template"]["arguments"] == {"documents": [{"text": "salt"}]}
    same = fitted(chat_template_kwargs=own, documents=[{"text": "salt"}])
    check_draw(same.draw, calibrator.draw)
    for other, told in (
        ({"chat_template_kwargs": own}, "`chat_template_kwargs documents`"),
        ({"chat_template_kwargs": [None, {"tools": [bake]}], "documents": [{"text": "salt"}]}, "of prompt"),
        ({"documents": [{"text": "salt"}]}, "of prompt"),
    ):
        drawn = fitted(**other).draw
        with pytest.raises(ArgumentError, match=told):
            check_draw(drawn, calibrator.draw)
    # Of prompts that are not drawn for, nothing matters.
    check_draw(fitted([CHATS[1]], documents=[{"text": "salt"}]).draw, calibrator.draw, [CHATS[1]])


def test_references_continue_what_is_rendered_by_hand(tmp_path):
    """With top_k=1 every response is the greedy one of plain `generate`."""
    own = [{"tools": [bake]}, {"style": "good"}]
    fitted_on = Columns()
    RewardCalibrator.fit(
        tiny_model("llama"), lambda prompts, completions, **columns: [
            float(place) + fitted_on(prompts, completions, **columns)[0] * 0 for place in range(len(prompts))
        ], CHATS, num_reference=2, tokenizer=tokenizer_with(), max_new_tokens=4, top_k=1, output_dir=tmp_path,
        chat_template_kwargs=own, progress=False,
    )  # fmt: skip
    for row, chat, arguments in zip(read_pool(tmp_path / "reference_pool.jsonl"), CHATS, own, strict=True):
        ids = torch.tensor([by_hand(chat, **arguments)])
        greedy = tiny_model("llama").generate(ids, do_sample=False, max_new_tokens=4)[0, ids.shape[1] :].tolist()
        assert row["response_ids"] == [greedy] * 2
    assert {(text, str(row.get("tools"))) for text, row in fitted_on.seen} == {
        ("how hot is it", str([get_json_schema(bake)])), ("what is salt", "None"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["how"], {"chat_template_kwargs": {"style": "good"}}, "`style` must come with chats"),
        (CHATS, {"chat_template_kwargs": {"enable_thinking": True}}, "got 'enable_thinking'"),
        ([CHATS[0]] * 2, {"chat_template_kwargs": [{"tools": [bake]}, None]}, "same wherever a prompt is"),
        (CHATS, {"tokenizer": tiny_tokenizer(), "tools": [bake]}, "`tools` must be written by"),
        (CHATS, {"reward_view": "end"}, "`reward_view` must be one of"),
    ],
)
def test_calibration_of_what_the_policy_would_not_see_is_refused(prompts, options, message):
    with pytest.raises(ItpError, match=message):
        fitted(prompts, **options)


def test_view_of_the_reward_is_part_of_the_draw():
    full = fitted()
    assert full.draw["reward_view"] == "full"
    with pytest.raises(ArgumentError, match="`reward_view` is 'final' and was 'full'"):
        check_draw({**full.draw, "reward_view": "final"}, full.draw)
    # Drawn before the view was recorded.
    check_draw(full.draw, {name: value for name, value in full.draw.items() if name != "reward_view"})


def test_columns_of_a_data_set_are_read_without_what_it_fills_in():
    """Arrow gives every row the fields of all others."""
    more = {"type": "function", "function": {"name": "bake", "strict": True}}
    rows = Dataset.from_list(
        [{"prompt": CHATS[0], "tools": [tool("mix")]}, {"prompt": CHATS[1], "tools": [more]}]
    ).to_list()
    assert rows[1]["tools"] != [more]
    plain = {"type": "function", "function": {"name": "mix", "parameters": {"type": "object"}}}
    found = arguments_in_rows(rows)
    assert found[prompt_fingerprint(CHATS[1])] == {"tools": [more]}
    assert found[prompt_fingerprint(CHATS[0])]["tools"][0]["function"].keys() == plain["function"].keys()
    as_text = [{"prompt": CHATS[0], "tools": json.dumps([tool("mix")]), "chat_template_kwargs": {"style": "good"}}]
    assert arguments_in_rows(as_text) == {prompt_fingerprint(CHATS[0]): {"tools": [tool("mix")], "style": "good"}}
    with pytest.raises(ArgumentError, match="Row 1 of the data"):
        arguments_in_rows([rows[0], {"prompt": CHATS[1], "documents": ["text"]}])


def test_no_tools_are_none():
    """Llama's template would introduce them."""
    assert template_arguments(tools=[], documents=[]) == {} == template_arguments({"tools": None})
    assert arguments_of_prompts(CHATS) == [{}, {}]


def test_file_of_tools_that_is_none_is_refused(tmp_path):
    file = tmp_path / "tools.json"
    for content, told in (("{}", "must hold a list"), ("[", "must be a file of JSON")):
        file.write_text(content)
        with pytest.raises(ArgumentError, match=told):
            list_in_file(file, "--tools")
    with pytest.raises(OSError, match="`--tools` must be readable"):
        list_in_file(tmp_path / "none", "--tools")
