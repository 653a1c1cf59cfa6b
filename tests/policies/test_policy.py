"""Test a policy with its tokenizer: how it loads, continues prompts in batches, and reads texts and chats."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_itp import Policy
from hf_itp.errors import ArgumentError, LoadError
from hf_itp.policies.policy import as_conversations
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "how"}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return saved_policy(tmp_path_factory.mktemp("policy"))


def answers(policy, prompts):
    output = policy.generate(
        prompts,
        strategy="best_of_n",
        reward_model=lambda prompts, completions, **_: [float(len(completion)) for completion in completions],
        num_candidates=3,
        max_new_tokens=5,
        seed=0,
    )
    return [[ids.tolist() for ids in pool] for pool in output.candidates]


def test_prompts_of_different_lengths_share_a_batch_without_changing_each_other(policy):
    loaded = Policy.from_pretrained(str(policy))
    chats = [[{"role": "user", "content": text}] for text in ("how do i bake bread", "so")]
    assert answers(loaded, chats) == [answers(loaded, [chat])[0] for chat in chats]


def test_policy_without_a_pad_token_batches_all_the_same(tmp_path):
    folder = saved_policy(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = Policy.from_pretrained(str(folder))
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    texts = ["how do i bake bread", "so"]
    assert answers(loaded, texts) == [answers(loaded, [text])[0] for text in texts]


def test_temperature_of_zero_with_a_strategy_says_the_way_out(policy):
    loaded = Policy.from_pretrained(str(policy))
    candidates = {"strategy": "best_of_n", "reward_model": lambda prompts, completions, **_: [0.0] * len(completions)}
    with pytest.raises(
        ArgumentError, match=r"got 0: all would be equal\. Leave it out or pass e\.g\. temperature=0\.7"
    ):
        loaded.generate([CHAT], temperature=0, max_new_tokens=3, **candidates)
    # Both ways out are ways out.
    loaded.generate([CHAT], temperature=0.7, max_new_tokens=3, num_candidates=2, seed=0, **candidates)
    loaded.generate([CHAT], do_sample=False, max_new_tokens=3)


def test_call_without_a_strategy_is_plain_generate(policy):
    loaded = Policy.from_pretrained(str(policy))
    plain = {"do_sample": False, "max_new_tokens": 5}
    inputs = loaded.tokenizer.apply_chat_template(
        [CHAT], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    expected = loaded.model.generate(**inputs, pad_token_id=loaded.tokenizer.pad_token_id, **plain)
    assert loaded.generate([CHAT], **plain).sequences.equal(expected)
    # What the caller says counts.
    assert loaded.generate([CHAT], return_dict_in_generate=False, **plain).equal(expected)


@pytest.mark.parametrize(("prompts", "told"), [([], "got none"), (["how", CHAT], "got both")])
def test_prompts_of_no_kind_or_of_two_are_refused_by_name(policy, prompts, told):
    with pytest.raises(ArgumentError, match=f"`prompts` must be all texts or all chats, {told}"):
        answers(Policy.from_pretrained(str(policy)), prompts)


# peft draws the adapter's first weights from torch's global random numbers.
@pytest.mark.uses_global_rng
def test_adapter_folder_is_a_policy(tmp_path):
    base = saved_policy(tmp_path)
    model = tiny_model("llama")
    model.name_or_path = str(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    loaded, ids = Policy.from_pretrained(str(folder)), torch.tensor([[1, 8, 9]])
    torch.testing.assert_close(loaded.model(ids).logits, adapted(ids).logits)
    assert not torch.allclose(loaded.model(ids).logits, Policy.from_pretrained(str(base)).model(ids).logits)


def test_dtype_is_the_checkpoint_s_unless_named(policy):
    assert Policy.from_pretrained(str(policy)).model.dtype == torch.float32
    assert Policy.from_pretrained(str(policy), dtype="bfloat16").model.dtype == torch.bfloat16


def test_policy_folder_without_tokenizer_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="that a folder holds both weights and tokenizer"):
        Policy.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model_id": "no/such/policy"}, "`model_id` 'no/such/policy' could not be loaded"),
        ({"device": "toaster"}, "`device` must name a device of this machine, got 'toaster'"),
    ],
)
def test_error_names_the_argument(policy, arguments, told):
    with pytest.raises((LoadError, ArgumentError), match=told):
        Policy.from_pretrained(**{"model_id": str(policy), **arguments})


def test_chat_the_template_refuses_is_refused_with_both_remedies(policy):
    loaded = Policy.from_pretrained(str(policy))
    loaded.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ArgumentError, match=r"got a refusal: no such role\. Change the messages, or pass"):
        answers(loaded, [CHAT])


def test_text_becomes_a_chat_where_there_is_a_template_and_a_chat_stays_one():
    tokenizer = tiny_tokenizer()
    assert as_conversations(["how", CHAT], tokenizer) == [CHAT, CHAT]
    assert as_conversations(["how"], tokenizer, plain=True) == ["how"]
    with pytest.raises(ArgumentError, match=r"Prompt 2 must be text .* without `plain`"):
        as_conversations(["how", CHAT], tokenizer, plain=True)
    tokenizer.chat_template = None
    assert as_conversations(["how"], tokenizer) == ["how"]
    with pytest.raises(ArgumentError, match="Give it as text"):
        as_conversations([CHAT], tokenizer)
