"""Test tools, documents, template arguments and the reward's view on the command line."""

from __future__ import annotations

import json

import pytest

from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

WRITES = (
    "{% for t in tools or [] %}<s>{{ t.function.name }}{% endfor %}{% for d in documents or [] %}<s>{{ d.text }}"
    "{% endfor %}{% if style is defined %}<s>{{ style }}{% endif %}{% for m in messages %}<s>{{ m.role }} "
    "{% if m.reasoning_content %}so {{ m.reasoning_content }} then {% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant{% if thinks %} so{% endif %}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "mix"}}]
DOCUMENTS = [{"text": "cold milk"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WRITES
    policy = saved_policy(folder)
    tokenizer.save_pretrained(policy)
    return policy, saved(folder / "reward", tiny_classifier("llama"), tokenizer)


@pytest.fixture
def files(tmp_path):
    written = {}
    for name, content in (("tools", TOOLS), ("documents", DOCUMENTS)):
        written[name] = tmp_path / f"{name}.json"
        written[name].write_text(json.dumps(content))
    return written


@pytest.fixture
def records(run, models):
    def records(*options, stdin):
        small = ("-n", 4, "--max-new-tokens", 8, "--json", "--all-candidates", "-q")
        ended = run("generate", "-m", models[0], "-r", models[1], *small, *options, stdin=stdin)
        assert ended.code == 0, ended.err
        found = [json.loads(line) for line in ended.out.splitlines()]
        return [[(one["response"], one["reward"]) for one in record["candidates"]] for record in found]

    return records


def test_options_and_rows_reach_the_chat_template(records, files):
    """A row's own arguments do the same as the options, and each changes what is drawn and scored."""
    row = {"messages": [{"role": "user", "content": "how hot is it"}]}
    plain = records(stdin=json.dumps(row))
    found = [plain]
    for name, option, value in (
        ("tools", files["tools"], TOOLS),
        ("documents", files["documents"], DOCUMENTS),
        ("chat-template-kwargs", '{"style": "good"}', {"style": "good"}),
    ):
        by_option = records(f"--{name}", option, stdin=json.dumps(row))
        own = {**row, name.replace("-", "_"): value}
        assert records(stdin=json.dumps(own)) == by_option
        # In one file with a row that has none.
        assert records("-f", "-", stdin=f"{json.dumps(own)}\n{json.dumps(row)}") == by_option + plain
        found.append(by_option)
    assert len(set(map(str, found))) == 4


def test_reward_view_leaves_out_the_thinking(records):
    """The responses are the same; `null` is the reward of those that never end their thinking."""
    row = json.dumps({"prompt": "how hot is it", "chat_template_kwargs": {"thinks": True}})
    [full], [final] = records("-n", 24, stdin=row), records("-n", 24, "--reward-view", "final", stdin=row)
    assert [text for text, _ in full] == [text for text, _ in final]
    unscored = [text for text, reward in final if reward is None]
    assert unscored and all("then" not in text.split()[:-1] for text in unscored)
    assert all("then" in text.split() for text, reward in final if reward is not None)
    assert all(reward is not None for _, reward in full)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--chat-template-kwargs", '{"enable_thinking": true}'), "got 'enable_thinking'"),
        (("--chat-template-kwargs", "style"), "must be JSON"),
        (("--reward-view", "end"), "`reward_view` must be one of"),
        (("--tools", "nowhere.json"), "`--tools` must be readable"),
        (("--plain", "--chat-template-kwargs", '{"style": "good"}'), "must come with chats"),
    ],
)
def test_what_the_template_does_not_know_is_refused(run, models, options, told):
    ended = run("generate", "-m", models[0], "-r", models[1], *options, "how hot is it")
    assert ended.code == 1 and told in " ".join(ended.err.split()) and ended.out == ""


def test_calibration_has_the_arguments_and_the_view(run, models, files, tmp_path):
    rows = [{"prompt": "how hot is it", "tools": TOOLS}, {"prompt": "what is salt"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))

    def calibrate(*options, folder=tmp_path / "calibration"):
        small = ("-k", 3, "--max-new-tokens", 4, "-q")
        return run("calibrate", folder, "-f", prompts, "-m", models[0], "-r", models[1], *small, *options)

    assert calibrate("--documents", files["documents"]).code == 0
    draw = json.loads((tmp_path / "calibration" / "calibration.json").read_text())["draw"]
    assert len(set(draw["chat_template"]["of_prompts"].values())) == 2 and draw["reward_view"] == "full"
    for other in ((), ("--documents", files["documents"], "--tools", files["tools"])):
        ended = calibrate(*other)
        assert ended.code == 1 and "Choose another folder" in ended.err
    ended = calibrate("--documents", files["documents"], "--reward-view", "final")
    assert ended.code == 1 and "`draw.reward_view`" in " ".join(ended.err.split())
