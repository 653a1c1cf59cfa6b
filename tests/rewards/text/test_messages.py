"""Test chats whose messages hold more than role and content: what templates, texts, functions and fingerprints see."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.calibrated_reward import CalibratedReward
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpError, ItpWarning, RewardModelError
from hf_itp.prompts import check_prompts, prompt_fingerprint
from hf_itp.rewards import CallableReward, ProcessRewardModel, RewardEnsemble, RewardModel
from hf_itp.rewards.text.rendering import as_messages, conversation, fold_system
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.oldest

USER = {"role": "user", "content": "how hot is it"}
CALL = {"type": "function", "function": {"name": "bake", "arguments": {"day": "one"}}}
OTHER_CALL = {"type": "function", "function": {"name": "mix", "arguments": {"day": "one"}}}
RESULT = {"role": "tool", "name": "bake", "tool_call_id": "c1", "content": "cold"}
WRITES_CALLS = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.name or '' }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.name }} {{ c.function.arguments.day }}{% endfor %}</s>\n"
    "{% endfor %}"
)
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
)
PICTURE = [
    {"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "what is it"}]}
]


def agent_chat(call=CALL, **assistant):
    return [USER, {"role": "assistant", "tool_calls": [call], **assistant}, RESULT]


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}], ids=["empty", "none", "absent"])
def test_template_is_given_every_field(content):
    """The reward follows the template's own rendering, so it differs with the tool call."""
    tokenizer, model = with_template(WRITES_CALLS), tiny_classifier("llama")
    reward = RewardModel(model, tokenizer)
    chats = [agent_chat(call, **content) for call in (CALL, OTHER_CALL)]
    before = copy.deepcopy(chats)
    rewards = reward(chats, ["it is cold"] * 2)
    for chat, value in zip(chats, rewards.tolist(), strict=True):
        whole = [*chat, {"role": "assistant", "content": "it is cold"}]
        ids = tokenizer.apply_chat_template(whole, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0, -1]
        assert value == pytest.approx(model.score(hidden).item(), abs=1e-4)
    assert rewards[0] != rewards[1] and chats == before
    reward.check(chats)


def test_content_of_none_is_not_written_as_a_word():
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    nothing, none = (
        [USER, {"role": "assistant", "content": ""}, USER],
        [USER, {"role": "assistant", "content": None}, USER],
    )
    assert reward([none], ["so"]) == reward([nothing], ["so"])


def test_conversation_continues_a_message_that_calls_tools():
    begun = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert conversation([USER, begun], "so") == [USER, {**begun, "content": "so"}]
    assert begun["content"] is None


def test_folding_keeps_what_the_first_message_has():
    named = {**USER, "name": "one"}
    system = {"role": "system", "content": "be good"}
    assert fold_system([system, named]) == [{**named, "content": "be good\n\nhow hot is it"}]
    assert fold_system([system, {"role": "user", "content": None}])[0]["content"] == "be good\n\n"


def test_messages_are_copies_all_the_way_down():
    chat = agent_chat(content="")
    copied = as_messages(chat)
    copied[1]["tool_calls"][0]["function"]["arguments"]["day"] = "other"
    assert chat[1]["tool_calls"][0]["function"]["arguments"]["day"] == "one"


def test_function_gets_the_chat_as_it_is_and_may_take_it_apart():
    seen = []

    def taking_apart(prompts, completions, **kwargs):
        seen.extend(copy.deepcopy(prompts))
        for prompt in prompts:
            prompt[-1].clear()
            prompt[0]["content"] = "other"
            prompt.pop()
        return [0.0] * len(completions)

    chats = [agent_chat(), agent_chat(content=None), PICTURE, PICTURE]
    before = copy.deepcopy(chats)
    CallableReward(taking_apart)(chats, ["so"] * 4)
    assert seen == before == chats


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (agent_chat(content=""), "Message 1 .*`tool_calls`.* Set `tokenizer.chat_template`"),
        ([{"role": "user", "content": None}], "`content` of message 0 of a chat must be text, got None"),
        ([USER, {"role": "assistant", "reasoning": "hm"}, USER], "`content` of message 1"),
        (PICTURE, "part of type 'image'"),
        ([], "at least one message"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "bert", "trl"])
def test_what_text_cannot_hold_is_refused_by_check(kind, chat, message):
    tokenizer = with_template(None)
    if kind == "trl":
        of_tokens = tiny_classifier("llama", num_labels=2, of_tokens=True)
        reward = ProcessRewardModel(of_tokens, tokenizer, step_token="so", separator=" ")
    else:
        reward = RewardModel(tiny_classifier(kind), tokenizer)
    for refused in (reward, RewardEnsemble([reward])):
        with pytest.raises(ArgumentError, match=message):
            refused.check(["how", chat])


def assert_refused_before_a_token(reward, prompt, error, message):
    policy, forwards = tiny_model("llama"), []
    policy.register_forward_pre_hook(lambda *_: forwards.append(1))
    with pytest.raises(error, match=message):
        policy.generate(
            torch.tensor([[1, 5, 6]]), strategy="best_of_n", reward_model=reward, prompts=[prompt],
            num_candidates=4, max_new_tokens=4, tokenizer=tiny_tokenizer(),
        )  # fmt: skip
    assert forwards == []


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (ALTERNATES, [USER, USER], "refuses a chat of the roles user, user, assistant: roles must alternate"),
        (None, PICTURE, "part of type 'image'"),
        ("{% for m in messages %}{{ '<s>' + m.content + '</s>' }}{% endfor %}", agent_chat(content=None), "refuses"),
        ("{% for m in messages %}{{ '<s>' + m.content + '</s>' }}{% endfor %}", agent_chat(), "refuses a chat"),
    ],
)
@pytest.mark.parametrize("kind", ["scalar", "steps"])
def test_what_the_template_cannot_render_costs_no_token(kind, template, chat, message):
    tokenizer = tiny_tokenizer() if template is None else with_template(template)
    if kind == "steps":
        answers = {"good_token": "good", "bad_token": "not", "step_token": "so"}
        reward = ProcessRewardModel(tiny_model("llama"), tokenizer, separator=" ", **answers)
    else:
        reward = RewardModel(tiny_classifier("llama"), tokenizer)
    assert_refused_before_a_token(reward, chat, ItpError, message)


def test_calibrator_without_the_prompt_costs_no_token():
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    calibrated = CalibratedReward(reward, RewardCalibrator(["how"], torch.tensor([[0.0, 1.0]])))
    assert_refused_before_a_token(calibrated, "other", ArgumentError, "1 of 1 that are not")
    calibrated.check(["how"])


def test_column_a_function_lacks_costs_no_token():
    def needs_answer(prompts, completions, answer):
        return [0.0] * len(completions)

    assert_refused_before_a_token(needs_answer, "how", ArgumentTypeError, "needs `answer`")


def test_picture_reaches_a_function_through_generate():
    seen = []

    def mine(prompts, completions, **kwargs):
        seen.extend(prompts)
        return [float(len(completion[0]["content"])) for completion in completions]

    tiny_model("llama").generate(
        torch.tensor([[1, 5, 6]]), strategy="best_of_n", reward_model=mine, prompts=[PICTURE], seed=0,
        num_candidates=4, max_new_tokens=4, tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    assert seen == [PICTURE] * 4


def test_calls_a_template_leaves_out_are_told():
    reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
    with pytest.warns(ItpWarning, match="leaves out `tool_calls`"):
        reward.check([agent_chat(content="")])


def test_ids_the_model_does_not_know_are_refused_by_check():
    reward = RewardModel(tiny_classifier("llama", vocab_size=20), tiny_tokenizer())
    with pytest.raises(RewardModelError, match="vocabulary size"):
        reward.check(["you yes water"])


@pytest.mark.parametrize("chat", [agent_chat(), agent_chat(content=None), PICTURE, [{"role": "user"}]])
def test_messages_need_a_role_alone(chat):
    assert check_prompts([chat]) == [chat]


@pytest.mark.parametrize("chat", [[{"content": "how"}], [{"role": 3}], ["how"]])
def test_messages_without_a_role_are_none(chat):
    with pytest.raises(ArgumentTypeError, match="must be a text or a chat"):
        check_prompts([chat])


def test_fingerprints_of_plain_prompts_stay():
    """Fingerprints of version 0.1.0, so that saved calibrations still fit."""
    assert prompt_fingerprint("Why?") == "fc79a4f8f82f77e67785d72e509778b5"
    assert prompt_fingerprint([USER]) == "4116ef5a23199a79930df50d669f4bca"
    assert prompt_fingerprint([{"role": "user", "content": None}]) == "2fdceb831e8877ab0581bf2d5faa362a"
    assert prompt_fingerprint(PICTURE) == "38661439e156d02879f39576b60a7036"


def test_fingerprints_tell_fields_apart():
    chats = [
        agent_chat(content=""), agent_chat(OTHER_CALL, content=""), agent_chat(content="x"),
        [USER, {"role": "assistant", "content": ""}, RESULT], [{**USER, "name": "one"}], [USER],
    ]  # fmt: skip
    assert len({prompt_fingerprint(chat) for chat in chats}) == len(chats)
    # Data sets fill fields that a message lacks and others have, in any order.
    filled = {"tool_calls": None, "content": USER["content"], "role": "user", "name": None}
    assert prompt_fingerprint([filled]) == prompt_fingerprint([USER])
    assert prompt_fingerprint(agent_chat(content=None)) == prompt_fingerprint(agent_chat())
