"""
Test `generate(strategy=...)` from the user's side: what every strategy returns.
"""

from __future__ import annotations

import copy
import inspect
import threading
import time

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import hf_itp
from hf_itp import ItpWarning, StrategyDecoding, StrategyOutput
from hf_itp.rewards import as_reward_function
from tests.tiny import EOS, PAD, PromptBoundReward, character_tokenizer, left_padded_batch, tiny_model, vision_batch

pytestmark = pytest.mark.oldest

STRATEGIES = {
    "best_of_n": {},
    "worst_of_n": {},
    "pessimism": {"beta": 0.05},
    "top_quantile": {"multiplier": 2.0},
    "best_of_poisson": {"rate": 4.0},
    "soft_best_of_n": {"reward_temperature": 0.2},
    "fresh": {"beta": 0.05, "pool": "fresh", "reward_bound": 1.0},
}
LENGTHS = [7, 5, 9]
PROMPTS = ["first question", [{"role": "user", "content": "second question"}], "third question"]


def strategy_of(name):
    if name == "fresh":
        return hf_itp.get_strategy("pessimism", **STRATEGIES[name])
    return hf_itp.get_strategy(name, **STRATEGIES[name])


def run(model, tokenizer, strategy, reward=None, batch=None, **arguments):
    defaults = {
        "reward_model": reward or PromptBoundReward(),
        "prompts": PROMPTS,
        "num_candidates": 8,
        "seed": 0,
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "tokenizer": tokenizer,
    }
    given = {name: value for name, value in (defaults | arguments).items() if value is not None}
    return model.generate(**(batch or left_padded_batch(LENGTHS)), strategy=strategy, **given)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_output_keeps_every_promise(name, num_return_sequences, llama, tokenizer):
    reward = PromptBoundReward()
    output = run(llama, tokenizer, strategy_of(name), reward, num_return_sequences=num_return_sequences)
    batch, k = left_padded_batch(LENGTHS), num_return_sequences
    assert isinstance(output, StrategyOutput)
    assert output.sequences.shape[0] == 3 * k and output.sequences.dtype == torch.long
    assert output.rewards.shape == output.selected.shape == (3, k) and output.rewards.dtype == torch.float32
    assert [len(set(row)) for row in output.selected.tolist()] == [k] * 3
    if name == "fresh":
        assert output.probabilities is None and output.candidate_rewards.shape[1] >= 8 + k
    else:
        assert output.candidate_rewards.shape == output.probabilities.shape == (3, 8)
        torch.testing.assert_close(output.probabilities.sum(-1), torch.ones(3, dtype=torch.float64))
        assert output.probabilities.gather(1, output.selected[:, :1]).gt(0).all()
    for row in range(3):
        for index, response in enumerate(output.candidates[row]):
            assert 1 <= len(response) <= 10
            assert EOS not in response[:-1], "nothing follows an end token"
            assert output.diagnostics["num_tokens"][row, index] == len(response)
            # The reward hashes prompt and response: equal numbers prove that both stayed aligned.
            text = text_of(tokenizer, response)
            shown = text if isinstance(PROMPTS[row], str) else [{"role": "assistant", "content": text}]
            assert output.candidate_rewards[row, index] == reward.reward(PROMPTS[row], shown)
        for place in range(k):
            winner = output.candidates[row][output.selected[row, place]]
            returned = output.sequences[row * k + place]
            assert returned[:9].equal(batch["input_ids"][row])
            assert returned[9 : 9 + len(winner)].equal(winner)
            assert returned[9 + len(winner) :].eq(PAD).all()
            assert output.rewards[row, place] == output.candidate_rewards[row, output.selected[row, place]]


@pytest.mark.parametrize("name", STRATEGIES)
def test_seed_decides_everything_and_the_batch_nothing(name, llama, tokenizer):
    together = run(llama, tokenizer, strategy_of(name))
    again = run(llama, tokenizer, strategy_of(name), batch_size=5)
    assert again.sequences.equal(together.sequences)
    for row in range(3):
        ids = left_padded_batch(LENGTHS)["input_ids"][row : row + 1, 9 - LENGTHS[row] :]
        alone = run(llama, tokenizer, strategy_of(name), batch={"input_ids": ids}, prompts=[PROMPTS[row]])
        assert alone.rewards.equal(together.rewards[row : row + 1])
    assert not run(llama, tokenizer, strategy_of(name), seed=1).sequences.equal(together.sequences)


def test_strategies_differ_on_the_same_pool(llama, tokenizer):
    best, worst = run(llama, tokenizer, "best_of_n"), run(llama, tokenizer, "worst_of_n")
    assert best.candidate_rewards.equal(worst.candidate_rewards)
    assert best.rewards[:, 0].equal(best.candidate_rewards.amax(-1))
    assert worst.rewards[:, 0].equal(worst.candidate_rewards.amin(-1))


def test_tensor_comes_back_by_default(llama, tokenizer):
    sequences = run(llama, tokenizer, "best_of_n", return_dict_in_generate=False)
    assert isinstance(sequences, torch.Tensor)
    assert sequences.equal(run(llama, tokenizer, "best_of_n").sequences)


def test_one_candidate_is_plain_sampling(llama, tokenizer):
    output = run(llama, tokenizer, "pessimism", num_candidates=1, beta=0.1)
    assert output.probabilities.eq(1).all() and output.selected.eq(0).all()


def test_tokenizer_is_found_where_the_policy_came_from(policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder("llama"))
    output = run(model, None, "best_of_n")
    assert output.rewards.shape == (3, 1)


@pytest.mark.uses_global_rng
def test_without_a_seed_torchs_own_governs(llama, tokenizer):
    torch.manual_seed(5)
    first = run(llama, tokenizer, "best_of_n", seed=None)
    second = run(llama, tokenizer, "best_of_n", seed=None)
    torch.manual_seed(5)
    assert run(llama, tokenizer, "best_of_n", seed=None).sequences.equal(first.sequences)
    assert not all(map(torch.equal, first.candidates[0], second.candidates[0]))


def test_top_k_nobody_set_is_off(llama, tokenizer):
    """transformers would cut at 50 of 64 tokens; some of 3,000 first tokens are beyond that."""
    arguments = {"num_candidates": 1000, "max_new_tokens": 1, "temperature": 3.0}
    seen = run(llama, tokenizer, "best_of_n", **arguments)
    cut = run(llama, tokenizer, "best_of_n", top_k=50, **arguments)
    assert len({int(response[0]) for response in seen.candidates[0]}) > 50
    assert len({int(response[0]) for response in cut.candidates[0]}) <= 50


@pytest.mark.parametrize("where", ["keyword", "generation_config", "checkpoint"])
def test_sampling_settings_count_wherever_they_are_set(where, tokenizer):
    model = tiny_model("llama")
    arguments = {"num_candidates": 4}
    if where == "keyword":
        arguments["top_k"] = 1
    elif where == "generation_config":
        config = GenerationConfig(top_k=1, max_new_tokens=10, return_dict_in_generate=True)
        arguments |= {"max_new_tokens": None, "return_dict_in_generate": None, "generation_config": config}
    else:
        model.generation_config.top_k = 1
    output = run(model, tokenizer, "best_of_n", **arguments)
    for pool in output.candidates:
        assert all(response.equal(pool[0]) for response in pool), "top_k=1 leaves one token a step"


@pytest.mark.parametrize("where", ["keyword", "generation_config"])
def test_stop_strings_end_a_response(where, llama):
    tokenizer = character_tokenizer()
    free = run(llama, tokenizer, "best_of_n")
    texts = [tokenizer.decode(response) for response in free.candidates[0]]
    stop = texts[0][3:5]
    if where == "keyword":
        stopped = run(llama, tokenizer, "best_of_n", stop_strings=[stop])
    else:
        config = GenerationConfig(stop_strings=[stop], max_new_tokens=10, return_dict_in_generate=True)
        arguments = {"max_new_tokens": None, "return_dict_in_generate": None, "generation_config": config}
        stopped = run(llama, tokenizer, "best_of_n", **arguments)
        assert config.stop_strings == [stop]
    ended = [text[: text.index(stop) + 2] if stop in text else text for text in texts]
    assert [tokenizer.decode(response) for response in stopped.candidates[0]] == ended
    assert ended != texts


class StopsAtToken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == 10


def test_own_stopping_criteria_end_a_response(llama, tokenizer):
    output = run(llama, tokenizer, "best_of_n", stopping_criteria=StoppingCriteriaList([StopsAtToken()]))
    ended = [response for pool in output.candidates for response in pool if 10 in response]
    assert ended and all(int(response[-1]) == 10 and 10 not in response[:-1] for response in ended)


def test_max_time_ends_the_call(tokenizer):
    model = tiny_model("llama")
    slow = model.forward

    def forward(*args, **kwargs):
        time.sleep(0.05)
        return slow(*args, **kwargs)

    model.forward = forward
    with pytest.warns(ItpWarning, match="`max_time` ended"):
        output = run(model, tokenizer, "best_of_n", max_new_tokens=200, max_time=0.4, eos_token_id=None)
    # Eight steps sleep for 0.4 s and the ninth at most is begun before; on a busy machine there are fewer.
    assert output.diagnostics["num_tokens"].max() < 20


def test_out_of_memory_halves_the_batch_and_goes_on(llama, tokenizer):
    expected = run(llama, tokenizer, "best_of_n")
    model, sizes = tiny_model("llama"), []
    fits = model.forward

    def forward(input_ids=None, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return fits(input_ids=input_ids, **kwargs)

    forward.__signature__ = inspect.signature(fits)
    model.forward = forward
    output = run(model, tokenizer, "best_of_n")
    assert max(sizes) == 24 and output.sequences.equal(expected.sequences)


def test_other_errors_of_the_policy_are_not_retried(tokenizer):
    model = tiny_model("llama")
    calls = []

    def forward(input_ids=None, **kwargs):
        calls.append(1)
        raise RuntimeError("the policy is broken")

    forward.__signature__ = inspect.signature(model.forward)
    model.forward = forward
    with pytest.raises(RuntimeError, match="the policy is broken"):
        run(model, tokenizer, "best_of_n")
    assert len(calls) == 1


def test_model_is_left_as_it_was(tokenizer):
    model = tiny_model("llama").train()
    before = copy.deepcopy({name: value for name, value in vars(model.config).items()})
    generation_before = model.generation_config.to_dict()
    run(model, tokenizer, "best_of_n")
    assert model.training
    assert vars(model.config) == before and model.generation_config.to_dict() == generation_before


def test_caller_arguments_are_left_as_they_were(llama):
    config = GenerationConfig(max_new_tokens=4, stop_strings=["ab"], num_return_sequences=2, do_sample=True)
    before, prompts = config.to_dict(), list(PROMPTS)
    absent = dict.fromkeys(["max_new_tokens", "return_dict_in_generate"])
    sequences = run(llama, character_tokenizer(), "best_of_n", prompts=prompts, generation_config=config, **absent)
    assert len(sequences) == 6
    assert config.to_dict() == before and prompts == PROMPTS


def test_threads_do_not_disturb_each_other(llama, tokenizer):
    expected = {seed: run(llama, tokenizer, "best_of_n", seed=seed).sequences for seed in range(4)}
    results = {}

    def work(seed):
        results[seed] = [run(llama, tokenizer, "best_of_n", seed=seed).sequences for _ in range(3)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sequences.equal(expected[seed]) for seed in range(4) for sequences in results[seed])


def test_missing_prompts_are_read_from_the_input_with_a_warning(llama, tokenizer):
    reward = PromptBoundReward()
    with pytest.warns(ItpWarning, match=r"Pass prompts=\[chat, ...\]"):
        run(llama, tokenizer, "best_of_n", reward, prompts=None)
    [(prompts, _)] = reward.calls
    ids = left_padded_batch(LENGTHS)["input_ids"]
    assert prompts[::8] == [tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def test_winner_is_streamed(llama, tokenizer, capsys):
    batch = {"input_ids": left_padded_batch([6])["input_ids"]}
    output = run(
        llama, tokenizer, "best_of_n", batch=batch, prompts=["a"], streamer=TextStreamer(tokenizer, skip_prompt=True)
    )
    winner = output.candidates[0][output.selected[0, 0]]
    assert capsys.readouterr().out.split() == tokenizer.decode(winner).split()


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoder_reads_its_own_prompt(architecture, tokenizer):
    model, reward = tiny_model(architecture), PromptBoundReward()
    output = run(model, tokenizer, "best_of_n", reward)
    assert output.sequences.shape[0] == 3
    # The decoder's start token and then the response: the prompt is the encoder's.
    for row in range(3):
        winner = output.candidates[row][output.selected[row, 0]]
        assert output.sequences[row, 1 : 1 + len(winner)].equal(winner)
    order = [2, 0, 1]
    batch = {name: values[order] for name, values in left_padded_batch(LENGTHS).items()}
    shuffled = run(model, tokenizer, "best_of_n", batch=batch, prompts=[PROMPTS[row] for row in order])
    if architecture == "t5":
        assert shuffled.rewards.equal(output.rewards[order])


@pytest.mark.parametrize("architecture", ["llava", "gemma3", "qwen2_vl"])
def test_vision_language_model_reads_its_picture(architecture, tokenizer):
    model, batch = tiny_model(architecture), vision_batch(architecture, [10, 9, 12])
    output = run(model, tokenizer, "best_of_n", batch=batch)
    assert output.rewards.shape == (3, 1)
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    changed = run(model, tokenizer, "best_of_n", batch=other)
    assert not changed.candidate_rewards.equal(output.candidate_rewards)


def test_decoding_object_gives_what_the_keyword_gives(llama, tokenizer):
    keyword = run(llama, tokenizer, "pessimism", beta=0.05)
    decoding = StrategyDecoding(
        hf_itp.get_strategy("pessimism", beta=0.05),
        as_reward_function(PromptBoundReward()),
        num_candidates=8,
        prompts=PROMPTS,
        seed=0,
        tokenizer=tokenizer,
    )
    batch = left_padded_batch(LENGTHS)
    settings = {"max_new_tokens": 10, "do_sample": True, "return_dict_in_generate": True}
    assert llama.generate(**batch, custom_generate=decoding, top_k=0, **settings).sequences.equal(keyword.sequences)
    with pytest.warns(ItpWarning, match="Pass top_k=0"):
        implicit = llama.generate(**batch, custom_generate=decoding, **settings)
    assert implicit.sequences.equal(keyword.sequences)


def test_reward_temperature_is_a_keyword_and_temperature_beside_it_the_policys(llama, tokenizer):
    output = run(llama, tokenizer, "soft_best_of_n", reward_temperature=0.2, temperature=0.7)
    drawn = run(llama, tokenizer, "best_of_n", temperature=0.7)
    assert output.candidate_rewards.equal(drawn.candidate_rewards)
    softmax = (output.candidate_rewards.double() / 0.2).softmax(dim=-1)
    torch.testing.assert_close(output.probabilities, softmax)


def test_default_of_pessimism_needs_no_scale(llama, tokenizer):
    """Rewards multiplied by 10 and shifted by 100 give the same candidates, laws and winners."""

    def moved(prompts, completions, **kwargs):
        return [10 * reward + 100 for reward in PromptBoundReward()(prompts, completions)]

    for pool in ("shared", "fresh"):
        usual = run(llama, tokenizer, "pessimism", pool=pool)
        other = run(llama, tokenizer, "pessimism", pool=pool, reward=moved)
        assert other.sequences.equal(usual.sequences) and other.selected.equal(usual.selected)
        if pool == "shared":
            torch.testing.assert_close(other.probabilities, usual.probabilities, atol=1e-4, rtol=1e-4)


def test_warning_when_pessimism_has_become_another_strategy(llama, tokenizer):
    with pytest.warns(ItpWarning, match="Choose a beta between"):
        run(llama, tokenizer, "pessimism", beta=1e-6)
    run(llama, tokenizer, "pessimism", beta=1e4)  # once per process: another warning would be an error


@pytest.mark.parametrize("name", ["best_of_n", "pessimism"])
def test_law_is_computed_once_per_call(name, llama, tokenizer, monkeypatch):
    """Selection, output and diagnostics share it."""
    kind, asked = type(strategy_of(name)), []
    original = kind.probabilities

    def probabilities(self, rewards):
        asked.append(tuple(rewards.shape))
        return original(self, rewards)

    monkeypatch.setattr(kind, "probabilities", probabilities)
    run(llama, tokenizer, name, **STRATEGIES[name])
    assert asked == [(len(LENGTHS), 8)]


def test_diagnostics_say_what_was_done(llama, tokenizer):
    diagnostics = run(llama, tokenizer, "pessimism", beta=0.05).diagnostics
    assert {"path", "num_tokens", "seconds", "normalizer", "acceptance_rate", "effective_sample_size"} <= set(
        diagnostics
    )
    assert set(diagnostics["seconds"]) == {"prefill", "sampling", "reward", "selection"}
    assert all(seconds >= 0 for seconds in diagnostics["seconds"].values())
    fresh = run(llama, tokenizer, strategy_of("fresh")).diagnostics
    assert fresh["fallbacks"].shape == (3,)


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_progress_bar_is_shown_when_asked_for_or_the_call_is_long(progress, shown, llama, tokenizer, capsys):
    """By default a call of milliseconds shows none."""
    run(llama, tokenizer, "best_of_n", progress=progress)
    assert ("Sampling" in capsys.readouterr().err) is shown
