"""
Test the compiled step: the same responses, compiled once for all batches and calls.
"""

from __future__ import annotations

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CompileConfig

from hf_itp.errors import ItpWarning
from hf_itp.sampling.shared_prefix.compiled import compiled_step
from tests.sampling.drawing import draw
from tests.sampling.test_architectures import SHARED
from tests.tiny import EOS, PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

# Rows end after some 6 tokens, so the batch shrinks from step to step.
ENDING = {"sequence_bias": [[[EOS], 2.0]], "max_new_tokens": 24}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def counted(name: str = "eager") -> tuple[CompileConfig, list[torch.fx.GraphModule]]:
    """Return a config that notes the graphs it compiles, and the list of these graphs."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(name)(graph, inputs)

    return CompileConfig(fullgraph=True, backend=backend, mode="default"), graphs


@pytest.mark.parametrize("architecture", SHARED)
def test_every_architecture_is_one_graph_and_draws_the_same(architecture):
    model, batch = tiny_model(architecture), left_padded_batch([7, 1, 12])
    expected, path = draw(model, batch, 8, **ENDING)
    assert path == "shared"
    config, graphs = counted()
    assert draw(model, batch, 8, compile_config=config, **ENDING)[0] == expected
    assert len(graphs) == 1, "once, for every number of rows"
    assert draw(model, batch, 8, compile_config=config, batch_size=5, **ENDING)[0] == expected
    assert len(graphs) == 1, "and for the calls to come"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_inductors_code_draws_the_same(architecture):
    model, batch = tiny_model(architecture), left_padded_batch([7, 5])
    expected, _ = draw(model, batch, 8, **ENDING)
    config, graphs = counted("inductor")
    assert draw(model, batch, 8, compile_config=config, **ENDING)[0] == expected
    tries = len(graphs)  # dynamo may start over while it compiles
    assert draw(model, batch, 8, compile_config=config, batch_size=5, **ENDING)[0] == expected
    assert len(graphs) == tries


@pytest.mark.uses_global_rng
def test_adapter_that_is_put_on_is_compiled_in():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    config, graphs = counted()
    draw(model, batch, 4, compile_config=config, **ENDING)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected, _ = draw(wrapped.eval(), batch, 4, **ENDING)
    assert draw(wrapped, batch, 4, compile_config=config, **ENDING)[0] == expected
    assert len(graphs) == 2


def test_changed_weights_are_used():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    config, graphs = counted()
    before, _ = draw(model, batch, 4, compile_config=config, **ENDING)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.roll(3, dims=0))
    after, _ = draw(model, batch, 4, compile_config=config, **ENDING)
    assert after == draw(model, batch, 4, **ENDING)[0] != before
    assert len(graphs) == 1


def test_threads_share_what_was_compiled():
    model, batch = tiny_model("llama"), left_padded_batch([7, 5])
    config, _ = counted()
    expected = [draw(model, batch, 6, seed=seed, **ENDING)[0] for seed in range(4)]
    found = {}

    def work(seed):
        found[seed] = draw(model, batch, 6, seed=seed, compile_config=config, **ENDING)[0]

    work(0)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


def test_nobody_who_does_not_ask_is_compiled():
    model = tiny_model("llama")
    assert compiled_step(model, model.generation_config) is None
    model.generation_config.compile_config = CompileConfig()
    model.generation_config.disable_compile = True
    assert compiled_step(model, model.generation_config) is None


def test_keyword_of_generate_with_a_strategy():
    model, (config, graphs) = tiny_model("llama"), counted()
    arguments = {
        **left_padded_batch([7, 5]),
        **{"strategy": "pessimism", "reward_model": PromptBoundReward(), "prompts": ["a", "b"]},
        **{"tokenizer": tiny_tokenizer(), "num_candidates": 6, "seed": 3, "max_new_tokens": 9},
    }
    expected = model.generate(**arguments)
    assert not graphs
    assert model.generate(**arguments, compile_config=config).equal(expected) and graphs


def test_policy_that_is_decoded_another_way_says_so():
    model, batch = tiny_model("bloom"), left_padded_batch([7, 5])
    config, graphs = counted()
    with pytest.warns(ItpWarning, match="nothing is compiled"):
        pools, _ = draw(model, batch, 4, compile_config=config)
    assert pools == draw(model, batch, 4)[0] and not graphs
