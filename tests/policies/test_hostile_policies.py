"""Test that a policy's checkpoint cannot run code, unpickle, reach out or take the machine's memory when loaded."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_itp import Policy
from hf_itp.errors import ArgumentError, ItpError, LoadError
from hf_itp.models.checkpoint_sizes import check_outline
from hf_itp.policies.loading import check_policy, load_policy_checkpoint
from tests.rewards.checkpoints.test_checkpoint import CONVERT, HARMFUL_CODE, edit, put_pickle
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "how do you bake bread"}]


@pytest.fixture
def folder(tmp_path):
    return saved_policy(tmp_path)


def refused(folder, reason, error=LoadError):
    started = time.monotonic()
    for load in (lambda: Policy.from_pretrained(str(folder)), lambda: load_policy_checkpoint(str(folder))):
        with pytest.raises(error, match=reason):
            load()
    assert not list(folder.rglob("harm"))
    assert time.monotonic() - started < 10


def longest(prompts, completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def generate(folder, prompts=("how do you bake bread",), **arguments):
    call = {"strategy": "best_of_n", "reward_model": longest, "num_candidates": 2, "max_new_tokens": 4, "seed": 0}
    return Policy.from_pretrained(str(folder)).generate(list(prompts), **(call | arguments))


def test_pickle_is_never_loaded(folder):
    (folder / "model.safetensors").unlink()
    put_pickle(folder)
    refused(folder, f"must be stored as safetensors, got none. A pickle such as pytorch_model.bin .* {CONVERT}")
    with pytest.raises(LoadError, match=CONVERT):
        check_policy(str(folder))


def test_pickle_beside_safetensors_is_left_alone(folder):
    put_pickle(folder)
    put_pickle(folder, "tokenizer.pkl")
    assert generate(folder).sequences.shape[0] == 1
    assert not (folder / "harm").exists()


def test_pickle_is_not_loaded_on_request_either(folder):
    with pytest.raises(ArgumentError, match="`use_safetensors` must be True"):
        load_policy_checkpoint(str(folder), use_safetensors=False)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../model.safetensors", "/etc/x.safetensors", "harm.py"])
@pytest.mark.parametrize("by", ["index", "configuration"])
def test_weights_are_safetensors_of_the_own_folder_alone(file, by, folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors").unlink()
    put_pickle(folder)
    if by == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tiny_model("llama").state_dict(), file)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        edit(folder, transformers_weights=file)
    refused(folder, f"must be safetensors beside .* {CONVERT}")


def test_pickle_named_as_safetensors_is_read_as_none(folder):
    (folder / "model.safetensors").unlink()
    put_pickle(folder, "model.safetensors")
    refused(folder, "could not be loaded")


# peft draws the adapter's first weights from torch's global random numbers.
@pytest.mark.uses_global_rng
class TestAdapters:
    @pytest.fixture
    def adapter(self, folder):
        model = tiny_model("llama")
        model.name_or_path = str(folder)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(folder.parent / "adapter")
        return folder.parent / "adapter"

    def test_adapter_that_is_a_pickle(self, adapter):
        (adapter / "adapter_model.safetensors").unlink()
        put_pickle(adapter, "adapter_model.bin")
        refused(adapter, f"no adapter_model.safetensors. {CONVERT}")

    def test_adapter_that_is_a_pickle_inside_a_whole_model(self, adapter, folder):
        shutil.copy(adapter / "adapter_config.json", folder)
        put_pickle(folder, "adapter_model.bin")
        refused(folder, f"no adapter_model.safetensors. {CONVERT}")

    def test_base_model_that_is_a_pickle(self, adapter, folder):
        (folder / "model.safetensors").unlink()
        put_pickle(folder)
        refused(adapter, CONVERT)
        assert not (folder / "harm").exists()

    def test_module_to_import(self, adapter, tmp_path, monkeypatch):
        (tmp_path / "adapters_module.py").write_text(HARMFUL_CODE)
        monkeypatch.syspath_prepend(str(tmp_path))
        edit(adapter, "adapter_config.json", megatron_config={"x": 1}, megatron_core="adapters_module")
        refused(adapter, "names a module to import, 'adapters_module'")
        assert not (tmp_path / "harm").exists() and "adapters_module" not in sys.modules


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "code.Model"}, "model_type": "remote"}),
        ("config.json", {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "r"}),
        ("config.json", {"auto_map": {"AutoConfig": "org/other--code.Config"}, "model_type": "remote"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.S", "code.F"]}, "tokenizer_class": "Own"}),
    ],
)  # fmt: skip
def test_code_is_not_run_unasked(file, entries, folder, monkeypatch):
    (folder / "code.py").write_text(HARMFUL_CODE)
    edit(folder, file, **entries)
    # transformers asks on the terminal if nobody said whether code may run.
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    refused(folder, "brings code of its own|does not recognize|could not be loaded")


def test_code_that_is_not_needed_is_not_run(folder):
    (folder / "code.py").write_text(HARMFUL_CODE)
    edit(folder, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    expected = generate(saved_policy(folder.parent / "plain")).sequences
    assert generate(folder).sequences.equal(expected) and not (folder / "harm").exists()


def test_custom_generate_is_not_run(folder):
    (folder / "custom_generate").mkdir()
    code = f"{HARMFUL_CODE}\ndef generate(*args, **kwargs): return 'harm'"
    (folder / "custom_generate" / "generate.py").write_text(code)
    expected = generate(saved_policy(folder.parent / "plain")).sequences
    assert generate(folder).sequences.equal(expected)
    assert generate(folder, strategy="best_of_n", num_candidates=1).sequences.shape[0] == 1
    assert not list(folder.rglob("harm"))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["kernels-community/flash-attn2", "someone/kernel@main:function"])
def test_configuration_asks_for_no_kernel(key, value, folder):
    edit(folder, **{key: value})
    refused(folder, "asks for a kernel from the Hub")
    if key == "attn_implementation":
        assert load_policy_checkpoint(str(folder), attn_implementation="sdpa").model.config.model_type == "llama"


def test_kernel_in_a_part_of_the_configuration_is_one_too(folder):
    edit(folder, attn_implementation={"text_config": "someone/kernel"})
    refused(folder, "asks for a kernel from the Hub")


def test_kernels_that_only_a_caller_may_ask_for_are_not_taken_from_the_configuration(folder):
    expected = generate(folder).sequences
    edit(folder, use_kernels=True, kernel_config={"RMSNorm": "someone/kernel:Norm"})
    assert generate(folder).sequences.equal(expected) and "kernels" not in sys.modules


def test_configuration_patches_no_class(folder):
    edit(folder, fusion_config={"rms_norm": True})
    refused(folder, "changes transformers' classes")


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "harmful_module.Config", "_data": {}}}},
        {"quant_method": "harmful_module"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "harmful_module"},
    ],
)
def test_quantization_imports_nothing_by_name(quantization, folder, tmp_path, monkeypatch):
    (tmp_path / "harmful_module.py").write_text(HARMFUL_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(folder, quantization_config=quantization)
    # The installed packages decide whether it loads as it is or raises.
    try:
        Policy.from_pretrained(str(folder))
    except Exception as error:
        assert isinstance(error, (ItpError, ImportError))
    assert not (tmp_path / "harm").exists() and "harmful_module" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 10**12), ("vocab_size", 10**8), ("hidden_size", 10**9), ("hidden_size", 10**6),
        ("intermediate_size", 10**12), ("intermediate_size", 10**8), ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1000), ("head_dim", 10**8), ("max_position_embeddings", 10**15),
    ],
)  # fmt: skip
def test_size_beyond_the_files_is_refused_before_memory_is_taken(key, value, folder):
    edit(folder, **{key: value})
    refused(folder, "must match its weights")


def test_table_of_positions_beyond_the_files_is_refused(tmp_path):
    folder = saved_policy(tmp_path, "gpt2")
    edit(folder, n_positions=10**8)
    refused(folder, "must match its weights")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", -1), ("hidden_size", "abc"), ("num_hidden_layers", None), ("num_attention_heads", 0),
        ("num_attention_heads", 10**9), ("rope_parameters", {"rope_type": "longrope"}), ("dtype", "nonsense"),
        ("model_type", "nonsense"), ("pad_token_id", 10**12), ("is_encoder_decoder", True),
    ],
)  # fmt: skip
def test_nonsense_in_a_configuration_is_an_error_that_names_the_checkpoint(key, value, folder):
    edit(folder, **{key: value})
    refused(folder, "llama.* could not be loaded")


def test_honest_checkpoints_are_of_their_size(folder):
    with torch.device("meta"):
        outline = tiny_model("llama").to("meta")
    check_outline("honest", outline, [str(folder / "model.safetensors")])


def test_weights_that_would_be_random_are_refused(folder):
    edit(folder, num_hidden_layers=3)
    refused(folder, r"must bring all of its weights, got none for `model\.layers\.2\.")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"eos_token_id": "abc"}, "`eos_token_id` must be a token's id below 64"),
        ({"eos_token_id": 10**12}, "`eos_token_id` must be a token's id below 64"),
        ({"eos_token_id": [2, 64]}, "`eos_token_id` must be a token's id below 64"),
        ({"eos_token_id": 2.5}, "`eos_token_id` must be"),
        ({"eos_token_id": [[2]]}, "`eos_token_id` must be"),
        ({"eos_token_id": -7}, "`eos_token_id` must be"),
        ({"pad_token_id": "x"}, "could not be loaded"),
        ({"pad_token_id": 2.5}, "`pad_token_id` must be a token's id"),
        ({"top_p": float("nan"), "do_sample": True}, "`top_p` must be a number"),
        ({"min_p": float("nan"), "do_sample": True}, "`min_p` must be a number"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"num_beams": 10**9}, "`num_beams` must be off"),
        ({"num_return_sequences": 10**9, "do_sample": True}, "num_return_sequences"),
    ],
)
def test_generation_config_of_no_numbers_is_refused(entries, reason, folder):
    edit(folder, "generation_config.json", **entries)
    with pytest.raises((ItpError, ValueError), match=reason):
        generate(folder)


@pytest.mark.parametrize(
    "entries", [{"max_length": 10**12}, {"max_new_tokens": 10**12}, {"top_k": 10**12, "do_sample": True}]
)
def test_absurd_limits_take_no_memory(entries, folder):
    edit(folder, "generation_config.json", **entries)
    assert generate(folder).sequences.shape[1] <= 9


@pytest.mark.parametrize(
    "entry",
    [
        {"strategy": "best_of_n", "num_candidates": 10**9},
        {"strategy": "os:system", "num_candidates": 2},
        {"strategy": "pessimism", "beta": float("nan")},
        {"strategy": "best_of_n", "reward_model": "../../etc", "trust_remote_code": True},
        {"strategy": "best_of_n", "num_candidates": 2, "reward_model_revision": "x;y"},
    ],
)
def test_recommendation_asks_for_nothing_unreasonable(entry, folder):
    edit(folder, "generation_config.json", hf_itp=entry)
    started = time.monotonic()
    with pytest.raises(ItpError):
        generate(folder, strategy="auto", num_candidates=None)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}{{ cycler.__init__.__globals__.os.system('touch harm') }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}{{ (''|attr('format'))('{0.__class__}').x.y }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch harm') }}",
        "{% extends 'x' %}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ lipsum.__globals__['os'].popen('touch harm') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{% if",
    ],
)
def test_template_cannot_loop_forever_or_leave_its_sandbox(template, folder, monkeypatch):
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(folder)
    policy = Policy.from_pretrained(str(folder))
    started = time.monotonic()
    with pytest.raises(ArgumentError, match="got a refusal: "):
        policy.generate([CHAT], strategy="best_of_n", reward_model=longest, num_candidates=2, max_new_tokens=2)
    assert time.monotonic() - started < 10 and not list(folder.rglob("harm"))


def test_nothing_of_a_prompt_is_executed(folder):
    tokenizer = tiny_tokenizer()
    policy = Policy.from_pretrained(str(folder))
    content = "{{ 7 * 7 }} {% for i in range(9) %} {{ messages.__class__ }} {% endfor %} how"
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend(prompts)
        return longest(prompts, completions)

    chat = [{"role": "user", "content": content}]
    policy.generate([chat], strategy="best_of_n", reward_model=reward, num_candidates=2, max_new_tokens=2, seed=0)
    assert seen[0][0]["content"] == content if isinstance(seen[0], list) else content in seen[0]
    # By hand, as the template says.
    rendered = f"<s>user\n{content}</s>\n<s>assistant\n"
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == rendered
