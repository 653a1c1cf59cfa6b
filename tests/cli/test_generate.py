"""Test on tiny models that `hf-itp generate` writes what the library returns."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_itp import Policy
from hf_itp.rewards import RewardModel
from tests.cli.test_app import unwrapped
from tests.tiny import saved_policy, tiny_tokenizer

PROMPT = "how do i bake bread"
CHAT = [{"role": "user", "content": PROMPT}]


def records(ended):
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.removesuffix("\n").split("\n")]


def test_json_holds_what_the_library_returns(generate, policy, reward_model):
    [record] = records(generate("--json", "--all-candidates", "-k", 2, "--seed", 3, "--beta", 0.5, PROMPT))

    tokenizer = tiny_tokenizer()
    inputs = tokenizer.apply_chat_template([CHAT], add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = AutoModelForCausalLM.from_pretrained(policy).generate(
        **inputs,
        strategy="pessimism",
        beta=0.5,
        reward_model=RewardModel.from_pretrained(str(reward_model)),
        prompts=[CHAT],
        tokenizer=tokenizer,
        num_candidates=4,
        num_return_sequences=2,
        seed=3,
        max_new_tokens=6,
        return_dict_in_generate=True,
    )
    prompt = inputs["input_ids"][0].tolist()
    before = len(tokenizer.decode(prompt, skip_special_tokens=True))
    texts = [tokenizer.decode([*prompt, *ids], skip_special_tokens=True)[before:] for ids in output.candidates[0]]
    assert record["prompt"] == CHAT
    assert record["responses"] == [texts[index] for index in output.selected[0]]
    assert record["rewards"] == pytest.approx(output.rewards[0].tolist())
    assert record["num_tokens"] == [len(output.candidates[0][index]) for index in output.selected[0]]
    assert record["finish_reasons"] == [
        "stop" if output.candidates[0][index][-1] == tokenizer.eos_token_id else "length"
        for index in output.selected[0]
    ]
    assert record["probabilities"] == pytest.approx(output.probabilities[0, output.selected[0]].tolist())
    assert record["diagnostics"]["normalizer"] == pytest.approx(output.diagnostics["normalizer"].item())
    assert [candidate["response"] for candidate in record["candidates"]] == texts
    assert [candidate["reward"] for candidate in record["candidates"]] == pytest.approx(
        output.candidate_rewards[0].tolist()
    )


def test_candidates_are_left_out_unless_asked_for(generate):
    [record] = records(generate("--json", PROMPT))
    assert set(record) == {
        "prompt", "responses", "rewards", "probabilities", "finish_reasons", "num_tokens", "diagnostics"
    }  # fmt: skip
    assert len(record["responses"]) == 1


def test_best_of_n_returns_the_highest_reward(generate):
    [record] = records(generate("--json", "--all-candidates", "-s", "best_of_n", "-n", 8, PROMPT))
    assert record["rewards"] == [max(candidate["reward"] for candidate in record["candidates"])]


def test_single_prompt_prints_its_response_and_nothing_else(generate):
    [record] = records(generate("--json", PROMPT))
    assert generate(PROMPT).out == record["responses"][0] + "\n"


def test_several_responses_stand_under_headings_with_their_rewards(generate):
    written = records(generate("--json", PROMPT, "what is\nit"))
    expected = "".join(
        f"### {heading}  (reward {record['rewards'][0]:.3f})\n\n{record['responses'][0]}\n\n"
        for heading, record in zip((PROMPT, "what is it"), written, strict=True)
    )
    assert generate(PROMPT, "what is\nit").out == expected


@pytest.mark.parametrize("batch_size", [None, 1, 8, 100])
def test_prompt_gets_the_same_answer_alone_and_among_others(generate, batch_size):
    def answer(record):
        return [record["prompt"], record["responses"], [round(reward, 3) for reward in record["rewards"]]]

    prompts = [PROMPT, "what is it", "so you can rest and see it"]
    size = () if batch_size is None else ("--batch-size", batch_size)
    alone = [answer(records(generate("--json", prompt))[0]) for prompt in prompts]
    assert [answer(record) for record in records(generate("--json", *size, *prompts))] == alone


def test_seed_changes_the_candidates(generate):
    drawn = [
        [
            c["response"]
            for c in records(generate("--json", "--all-candidates", "--seed", seed, PROMPT))[0]["candidates"]
        ]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_file_and_stdin_give_what_arguments_give(generate, tmp_path):
    expected = [record["responses"] for record in records(generate("--json", PROMPT, "what is it"))]
    text = f"{PROMPT}\nwhat is it\n"
    rows = [{"prompt": PROMPT}, {"messages": [{"role": "user", "content": "what is it"}]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.txt").write_text(text)
    (tmp_path / "prompts.jsonl").write_text(lines)
    (tmp_path / "prompts.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    ways = [generate("--json", "-f", file) for file in sorted(tmp_path.iterdir())]
    ways += [generate("--json", stdin=text), generate("--json", "-f", "-", stdin=lines)]
    for ended in ways:
        assert [record["responses"] for record in records(ended)] == expected


def test_system_message_is_part_of_the_prompt(generate):
    [record] = records(generate("--json", "--system", "ask me", PROMPT))
    assert record["prompt"] == [{"role": "system", "content": "ask me"}, *CHAT]
    assert record["responses"] != records(generate("--json", PROMPT))[0]["responses"]


def test_plain_prompt_stays_text(generate):
    [record] = records(generate("--json", "--plain", PROMPT))
    assert record["prompt"] == PROMPT


def test_text_is_not_changed_on_its_way(generate, tmp_path):
    """Only the line break is removed from a line of a file, and nothing from JSON."""
    lines = ["    return bread", "what is it  ", "\tbake\u2028 it \x0c\x85"]
    (tmp_path / "code.txt").write_bytes(f"{lines[0]}\n{lines[1]}\r\n{lines[2]}".encode())
    rows = "".join(json.dumps({"prompt": line}) + "\r\n" for line in lines)
    for ended in (
        generate("--json", "--plain", "-f", tmp_path / "code.txt"),
        generate("--json", "--plain", "-f", "-", stdin=rows),
        generate("--json", "--plain", *lines),
    ):
        assert [record["prompt"] for record in records(ended)] == lines


def test_response_keeps_the_space_between_it_and_its_prompt(generate, policy, reward_model):
    """Prompt and response decoded together must read as the prompt followed by the response."""
    [record] = records(generate("--json", "--plain", "--all-candidates", PROMPT))
    responses = [candidate["response"] for candidate in record["candidates"] if candidate["num_tokens"] > 1]
    tokenizer = tiny_tokenizer()
    for response in responses:
        assert response.startswith(" ")
        whole = tokenizer(PROMPT + response)["input_ids"]
        assert tokenizer.decode(whole, skip_special_tokens=True) == PROMPT + response
    assert generate("--plain", PROMPT).out == record["responses"][0] + "\n"


def test_blank_lines_are_skipped_with_a_word(generate, tmp_path):
    (tmp_path / "prompts.txt").write_text("how\n\n   \nwhat\n")
    ended = generate("--json", "--quiet", "-f", tmp_path / "prompts.txt")
    assert [record["prompt"][0]["content"] for record in records(ended)] == ["how", "what"]
    assert "2 of 4" in ended.err and "skipped" in ended.err


def test_chat_keeps_the_fields_that_are_its_template_s_business(generate):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "rest", "arguments": {}}}]}
    chat = [*CHAT, call, {"role": "tool", "name": "rest", "content": "  it is\n"}]
    [record] = records(generate("--json", stdin=json.dumps({"messages": chat})))
    assert record["prompt"] == chat
    assert generate("-k", 2, stdin=json.dumps({"messages": chat})).out.startswith("### it is  (reward")


def test_fields_of_the_strategy_come_by_set(generate):
    [record] = records(generate("--json", "--set", "pool=fresh", "--set", "beta=0.5", PROMPT))
    assert record["probabilities"] == [None]
    assert "fallbacks" in record["diagnostics"]


def test_sampling_options_reach_the_sampler(generate):
    def distinct(*options):
        [record] = records(generate("--json", "--all-candidates", "-n", 12, *options, PROMPT))
        return len({candidate["response"] for candidate in record["candidates"]})

    assert distinct() > 3
    greedy = [("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1.0), ("--temperature", 1e-4)]
    assert [distinct(*option) for option in greedy] == [1, 1, 1, 1]


def test_several_reward_models_are_an_ensemble(generate, reward_model):
    options = ("--json", "--all-candidates", PROMPT)
    [alone] = records(generate(*options))
    [ensemble] = records(generate("-r", reward_model, *options))
    # The same model twice: the mean is its own reward.
    assert [c["reward"] for c in ensemble["candidates"]] == pytest.approx([c["reward"] for c in alone["candidates"]])


def test_encoder_decoder_answers_too(run, reward_model, tmp_path):
    folder = saved_policy(tmp_path, "t5")
    ended = run("generate", "-m", folder, "-r", reward_model, "-n", 2, "--max-new-tokens", 4, "--json", PROMPT)
    assert len(records(ended)[0]["responses"]) == 1


def test_dtype_is_the_one_asked_for(generate, policy):
    [half], [full] = (records(generate("--json", "--dtype", dtype, PROMPT)) for dtype in ("bfloat16", "auto"))
    assert half["rewards"] != full["rewards"] or half["responses"] == full["responses"]
    assert Policy.from_pretrained(str(policy), dtype="bfloat16").model.dtype == torch.bfloat16
    assert Policy.from_pretrained(str(policy)).model.dtype == torch.float32


def test_progress_goes_to_stderr_and_quiet_switches_it_off(generate):
    several = ("--json", "-s", "best_of_n", PROMPT, "what is it")
    spoken, quiet = generate(*several), generate("--quiet", *several)
    assert len(records(spoken)) == len(records(quiet)) == 2
    assert "Loading weights" in spoken.err
    assert quiet.err == ""
    assert "Loading weights" in generate(PROMPT).err


def test_chat_for_a_policy_without_template_is_refused(generate, run, reward_model, policy, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    folder = saved_policy(tmp_path)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    ended = run("generate", "-m", folder, "-r", reward_model, stdin=json.dumps({"messages": CHAT}))
    assert ended.code == 1
    assert "choose a policy with a chat template" in ended.err


# transformers draws the missing head before anyone can refuse it.
@pytest.mark.uses_global_rng
def test_reward_model_without_head_is_refused_before_anything_is_drawn(run, policy):
    ended = run("generate", "-m", policy, "-r", policy, PROMPT)
    assert ended.code == 1
    assert "so its rewards would be random" in ended.err
    assert ended.out == ""


def test_global_random_numbers_are_left_alone(generate):
    before = torch.get_rng_state()
    generate(PROMPT)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def recommending(policy, reward_model, tmp_path):
    """Return the policy with a recommendation of its own."""
    folder = tmp_path / "recommending"
    shutil.copytree(policy, folder)
    entry = {"strategy": "best_of_n", "num_candidates": 3, "reward_model": str(reward_model)}
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"hf_itp": entry}))
    return folder


def test_recommendation_of_the_policy_is_followed_and_said(run, recommending, generate):
    ended = run("generate", "-m", recommending, "--max-new-tokens", 6, "--json", "--all-candidates", PROMPT)
    [expected] = records(generate("--json", "--all-candidates", "-s", "best_of_n", "-n", 3, PROMPT))
    [found] = records(ended)
    assert found["responses"] == expected["responses"] and found["candidates"] == expected["candidates"]
    assert "recommends" in ended.err and "best_of_n" in ended.err


def test_options_win_over_the_recommendation(run, recommending, generate):
    arguments = ("--json", "--all-candidates", "-s", "pessimism", "--beta", 0.7, "-n", 4)
    [expected] = records(generate(*arguments, PROMPT))
    [found] = records(generate(*arguments, "-m", recommending, PROMPT))
    assert found["responses"] == expected["responses"] and found["candidates"] == expected["candidates"]


def test_auto_without_a_recommendation_is_an_error(run, policy):
    ended = run("generate", "-m", policy, "-s", "auto", PROMPT)
    assert ended.code == 1 and "Pass a strategy by name" in ended.err and "recommends: None" not in ended.err


def test_early_rejection_returns_a_candidate_and_says_what_was_rejected(generate):
    [record] = records(generate("--json", "-s", "best_of_n", "-n", 8, "--early-rejection", 0.5, PROMPT))
    assert len(record["responses"]) == 1
    assert any(name.startswith("early_rejection") or "rejected" in name for name in record["diagnostics"])


def test_early_rejection_of_another_strategy_is_refused_with_the_remedy(generate):
    ended = generate("--early-rejection", 0.5, "-s", "pessimism", PROMPT)
    assert ended.code == 1 and "best_of_n" in ended.err


def check_temperature_of_the_embedded_policy(run):
    """What is drawn without a word is what --temperature 0.7 draws, and only the first is said."""
    spoken, told, warm, quiet = (
        run(*options) for options in ((), ("--temperature", 0.7), ("--temperature", 1.0), ("--quiet",))
    )
    [first], [same], [other], _ = map(records, (spoken, told, warm, quiet))
    assert first["candidates"] == same["candidates"] != other["candidates"]
    assert "temperature 0.7, which suits the embedded policy" in unwrapped(spoken.err)
    assert not any("temperature" in ended.err for ended in (told, warm, quiet))


def test_embedded_policy_draws_at_its_own_temperature_and_says_so(generate, policy, monkeypatch):
    monkeypatch.setattr("hf_itp.cli.generate.EMBEDDED", str(policy))
    best = ("--json", "--all-candidates", "-s", "best_of_n", "-n", 8)
    check_temperature_of_the_embedded_policy(lambda *options: generate(*best, *options, PROMPT))


@pytest.mark.slow
def test_default_command_draws_at_the_embedded_policy_s_temperature(run, reward_model):
    best = ("--json", "--all-candidates", "-s", "best_of_n", "-n", 4, "--max-new-tokens", 12, "-r", reward_model)
    check_temperature_of_the_embedded_policy(lambda *options: run("generate", *best, *options, PROMPT))


def test_temperature_of_another_policy_is_its_checkpoint_s(generate):
    best = ("--json", "--all-candidates", "-s", "best_of_n", "-n", 8)
    [usual], [one] = (records(generate(*best, *options, PROMPT)) for options in ((), ("--temperature", 1.0)))
    assert usual["candidates"] == one["candidates"]
