"""
Test trainers on chats with tools of their own, and with a reward that reads only what follows the thinking.

References and rollouts must continue the prompt that the template writes with a row's own arguments, which TRL's
trainers leave out.
"""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_itp import CTRLArguments, CTRLTrainer, RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.training import QuantileRegressionArguments, QuantileRegressionTrainer
from tests.tiny import saved_policy, tiny_tokenizer

pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it

TEMPLATE = (
    "{% for t in tools or [] %}<s>{{ t.function.name }}{% endfor %}{% if style is defined %}<s>{{ style }}{% endif %}"
    "{% for m in messages %}<s>{{ m.role }} {% if m.reasoning_content %}so {{ m.reasoning_content }} then "
    "{% endif %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant{% endif %}"
)
CHATS = [[{"role": "user", "content": text}] for text in ("how hot is it", "what is salt")]
TOOLS = [[{"type": "function", "function": {"name": name}}] for name in ("mix", "bake")]
SETTINGS = {
    "max_completion_length": 6, "max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3,
    "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
    "num_reference": 8, "transform": "identity", "beta": 0.5, "chat_template_kwargs": {"style": "good"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def tokenizer_with(template=TEMPLATE):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def by_hand(chat, tools):
    text = tokenizer_with().apply_chat_template(
        chat, tools=tools, style="good", add_generation_prompt=True, tokenize=False
    )
    return tokenizer_with()(text, add_special_tokens=False)["input_ids"]


class Seen:
    """Reward that notes the tools and words it is called with."""

    __name__ = "seen"

    def __init__(self):
        self.tools, self.words = [], []

    def __call__(self, prompts, completions, completion_ids, tools=None, **kwargs):
        for place, prompt in enumerate(prompts):
            self.tools.append((prompt[0]["content"], None if tools is None else tools[place]))
        self.words += [completion[0]["content"].split() for completion in completions]
        return [float(sum((place + 1) * token for place, token in enumerate(ids))) for ids in completion_ids]


def reinforced(folder, output, reward, data, template=TEMPLATE, **overrides):
    return CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder), reward,
        CTRLArguments(str(output), **({"num_generations": 4} | SETTINGS | overrides)),
        train_dataset=Dataset.from_list(data), processing_class=tokenizer_with(template),
    )  # fmt: skip


def rows():
    return [{"prompt": chat, "tools": tools} for chat, tools in zip(CHATS, TOOLS, strict=True)]


@pytest.mark.parametrize("shared", [True, False])
def test_references_and_rollouts_have_the_tools_of_their_row(folder, tmp_path, shared):
    reward = Seen()
    trainer = reinforced(folder, tmp_path, reward, rows(), shared_prefix_rollouts=shared)
    continued = []
    single_turn = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: [continued.extend(ids), single_turn(ids, *rest)][1]
    trainer.train()
    expected = [by_hand(chat, tools) for chat, tools in zip(CHATS, TOOLS, strict=True)]
    assert len(continued) == 8 and {str(ids) for ids in continued} == set(map(str, expected))
    assert len(reward.tools) == 16 + 8
    for text, tools in reward.tools:
        assert tools == TOOLS[0 if text == "how hot is it" else 1]
    # The draw says so: a calibration without the tools is of another draw.
    assert set(trainer.calibrator.draw["chat_template"]["of_prompts"]) == set(trainer.calibrator.fingerprints)
    bare = RewardCalibrator.fit(
        AutoModelForCausalLM.from_pretrained(folder), Seen(), CHATS, num_reference=8, tokenizer=tokenizer_with(),
        chat_template_kwargs={"style": "good"}, max_new_tokens=6, progress=False,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="chat_template_kwargs of prompt"):
        bare.check_belongs(draw=trainer.calibrator.draw)


def test_tools_that_the_template_leaves_out_are_refused_at_the_start(folder, tmp_path):
    template = TEMPLATE.replace("tools or []", "[]")
    with pytest.raises(ArgumentError, match="`tools` must be written by the policy's chat template"):
        reinforced(folder, tmp_path, Seen(), rows(), template)
    with pytest.raises(ArgumentError, match="got 'enable_thinking'"):
        reinforced(folder, tmp_path, Seen(), rows(), chat_template_kwargs={"enable_thinking": False})


def test_regression_continues_the_same_prompts_from_data_and_from_its_pool(folder, tmp_path):
    arguments = {name: value for name, value in SETTINGS.items() if name != "max_steps"}
    expected = [by_hand(chat, tools) for chat, tools in zip(CHATS, TOOLS, strict=True)]

    def trained(**source):
        args = QuantileRegressionArguments(str(tmp_path), max_steps=1, **arguments)
        trainer = QuantileRegressionTrainer(
            AutoModelForCausalLM.from_pretrained(folder), Seen(), args, processing_class=tokenizer_with(), **source
        )
        trainer.train()
        return [row["prompt_ids"] for row in trainer.train_dataset]

    assert trained(train_dataset=Dataset.from_list(rows())) == [ids for ids in expected for _ in range(8)]
    assert trained(pool=tmp_path / "_calibration") == [ids for ids in expected for _ in range(8)]


def test_reward_reads_final_parts_of_references_and_rollouts(folder, tmp_path):
    """Right are the words after the one that ends the thinking, of what was drawn; what has none is left out."""
    reward, data = Seen(), [{"prompt": chat} for chat in CHATS]
    trainer = reinforced(
        folder, tmp_path, reward, data, reward_view="final", num_reference=64, max_completion_length=24,
        num_generations=64, per_device_train_batch_size=128, chat_template_kwargs=None,
    )  # fmt: skip
    completions = []
    single_turn = trainer._generate_single_turn

    def kept(*arguments):
        completions.extend(drawn := single_turn(*arguments))
        return drawn

    trainer._generate_single_turn = kept
    trainer.train()
    logged = {name: value for logs in trainer.state.log_history for name, value in logs.items()}
    tokenizer = tokenizer_with()

    def final(ids):
        """Return what follows the markers `so ... then`, `None` if it ends between them."""
        words = tokenizer.decode(ids, skip_special_tokens=True).split()
        text = " ".join(words)
        kept, thinks = [], False
        if "then" in words and ("so" not in words or words.index("then") < words.index("so")):
            words = words[words.index("then") + 1 :]
            if "so" not in words and not words:
                return None
        for word in words:
            if not thinks and word == "so":
                thinks = True
            elif thinks and word == "then":
                thinks = False
            elif not thinks:
                kept.append(word)
        return None if thinks or (not kept and text) else kept

    absent = [final(ids) is None for ids in completions]
    assert any(absent) and not all(absent)
    assert logged["reward/none"] == pytest.approx(sum(absent) / len(absent), abs=1e-6)
    # The last call scored the rollouts: the reward read these words and no others.
    read = [words for words in map(final, completions) if words is not None]
    assert sorted(reward.words[-len(read) :]) == sorted(read)
    references = trainer.calibrator
    assert references.draw["reward_view"] == "final"
    assert int(references.reference_rewards.isnan().sum()) > 0
    assert trainer.decoding_entry()["reward_view"] == "final"
