"""
Test the wrapper around `generate`: installed once, invisible without a strategy, and removed when asked.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

import hf_itp
from hf_itp import ItpError, ItpWarning
from tests.tiny import ARCHITECTURES, VISION_LANGUAGE, left_padded_batch, tiny_model, vision_batch

pytestmark = pytest.mark.oldest


def original():
    return GenerationMixin.generate._hf_itp_original


@pytest.fixture
def enabled():
    yield
    hf_itp.enable()


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampled", "beams"])
def test_without_a_strategy_generate_is_transformers_own(architecture, settings):
    if settings.get("num_beams") and architecture == "recurrent_gemma":
        settings = {}
    batch = vision_batch(architecture, [9, 10]) if architecture in VISION_LANGUAGE else left_padded_batch([7, 5])
    outputs = []
    for generate in (type(tiny_model(architecture)).generate, original()):
        torch.manual_seed(1)
        # Use a new model each time, since some keep states between calls.
        arguments = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True, **settings}
        outputs.append(generate(tiny_model(architecture), **batch, **arguments))
    patched, plain = outputs
    assert patched.sequences.equal(plain.sequences)
    assert all(map(torch.equal, patched.logits, plain.logits))


def test_none_is_no_strategy():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    plain = model.generate(**batch, max_new_tokens=5)
    assert model.generate(**batch, max_new_tokens=5, strategy=None).equal(plain)


def test_enabling_twice_wraps_once(enabled):
    hf_itp.enable()
    once = GenerationMixin.generate
    hf_itp.enable()
    assert GenerationMixin.generate is once and not hasattr(original(), "_hf_itp_original")


def test_disabling_restores_the_original(enabled):
    plain = original()
    hf_itp.disable()
    assert GenerationMixin.generate is plain
    hf_itp.disable()
    assert GenerationMixin.generate is plain
    with pytest.raises(ValueError, match="strategy"):
        tiny_model("llama").generate(**left_padded_batch([5]), strategy="best_of_n", max_new_tokens=2)


def test_wrapper_of_another_package_is_not_torn_off(enabled, monkeypatch):
    ours = GenerationMixin.generate

    @functools.wraps(ours)
    def theirs(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", theirs)
    with pytest.raises(ItpError, match="Undo the other wrapper first"):
        hf_itp.disable()
    assert GenerationMixin.generate is theirs


def test_signature_and_help_show_the_keywords():
    generate = tiny_model("llama").generate
    parameters = inspect.signature(generate).parameters
    for name in ("strategy", "reward_model", "prompts", "num_candidates", "seed", "batch_size", "progress"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{name} (" in generate.__doc__
    known = set(inspect.signature(original()).parameters) - {"self"}
    assert known < set(parameters)
    assert list(parameters)[-1] == "kwargs"
    assert "Responses drawn per prompt" in inspect.getdoc(GenerationMixin.generate)


def test_patched_model_can_be_pickled():
    model = tiny_model("llama")
    batch = left_padded_batch([7, 5])
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.generate(**batch, max_new_tokens=4).equal(model.generate(**batch, max_new_tokens=4))


def test_strategy_hidden_in_a_generation_config_is_told():
    config = GenerationConfig(max_new_tokens=3)
    config.strategy = "best_of_n"
    with pytest.warns(ItpWarning, match=r"Pass strategy=\.\.\. to `generate`"):
        tiny_model("llama").generate(**left_padded_batch([5]), generation_config=config)


@pytest.mark.parametrize(
    ("order", "setting", "knows"),
    [
        ("import hf_itp; import transformers", "", True),
        ("import transformers; transformers.GenerationMixin; import hf_itp", "", True),
        ("import hf_itp; import transformers", "1", False),
        ("import hf_itp; import transformers; hf_itp.enable()", "1", True),
    ],
)
def test_import_teaches_the_keyword_in_any_order_unless_told_not_to(order, setting, knows):
    signature = "inspect.signature(transformers.LlamaForCausalLM.generate)"
    code = f"{order}; import inspect; print('strategy' in {signature}.parameters)"
    environment = {**os.environ, "HF_ITP_DISABLE": setting}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == str(knows)


def test_import_is_light_until_transformers_is_imported():
    code = "import sys, hf_itp; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_public_names_exist():
    for name in hf_itp.__all__:
        assert getattr(hf_itp, name) is not None
    assert set(hf_itp.__all__) <= set(dir(hf_itp))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hf_itp.nonsense  # noqa: B018
