"""Test that every option of every command is used or refused, in all combinations where it might be neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer

from hf_itp.cli import app
from hf_itp.generation.keywords import KEYWORDS
from tests.cli.test_app import unwrapped

PROMPT = "how do i bake bread"


def options_of(command: str) -> set[str]:
    """Return the long names of a command's options, as the program itself lists them."""
    parameters = typer.main.get_command(app).commands[command].params
    return {max(parameter.opts, key=len) for parameter in parameters if parameter.param_type_name == "option"}


def recommending(policy: Path, folder: Path, **entry: object) -> Path:
    """Return a copy of the policy whose checkpoint recommends `entry`."""
    shutil.copytree(policy, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"hf_itp": entry}))
    return folder


def test_keyword_with_a_help_is_an_option_with_that_help():
    """A keyword without a help is no option, so a keyword is added to `generate` in one place."""
    for command, expected in (("generate", {name for name, keyword in KEYWORDS.items() if keyword.help}),
                              ("calibrate", {"seed", "batch_size", "reward_model", "reward_view"}),
                              ("push", {"strategy", "reward_model", "num_candidates", "reward_view"})):  # fmt: skip
        parameters = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}
        assert parameters.keys() & KEYWORDS.keys() - {"prompts"} == expected
        for name in expected:
            assert parameters[name].help.startswith(KEYWORDS[name].help), (command, name)


# Options of `generate` whose use shows in the record of a run, which differs with them.
GENERATE = {
    "--system": ("ask me",),
    "--plain": (),
    "--num-candidates": (5,),
    "--max-new-tokens": (3,),
    "--temperature": (0.2,),
    "--top-p": (0.3,),
    "--top-k": (2,),
    "--min-p": (0.5,),
    "--seed": (1,),
    "--strategy": ("worst_of_n",),
    "--beta": (0.001,),
    "--set": ("normalize=zscore",),
    "--num-return-sequences": (2,),
    "--all-candidates": (),
}
# Other options, and what shows their use.
GENERATE_ELSEWHERE = {
    "--prompt-field": "test_prompts_may_be_in_another_column",
    "--prompts-per-call": "test_results_do_not_depend_on_the_prompts_of_a_call",
    "--output": "test_file_holds_a_row_per_prompt_with_the_columns_of_the_input",
    "--overwrite": "test_results_of_other_settings_are_refused_by_name_unless_replaced",
    "--file": "test_file_and_stdin_give_what_arguments_give",
    "--model": "test_recommendation_of_the_policy_is_followed_and_said",
    "--reward-model": "test_several_reward_models_are_an_ensemble",
    "--reward-label": "test_label_is_looked_for_in_the_reward_model",
    "--dtype": "test_dtype_is_the_one_asked_for",
    "--device": "test_error_of_ours_ends_with_1_and_its_remedy",
    "--trust-remote-code": "a permission, of which not every model makes use",
    "--batch-size": "test_prompt_gets_the_same_answer_alone_and_among_others: changes only speed",
    "--early-rejection": "test_early_rejection_returns_a_candidate_and_says_what_was_rejected",
    "--tools": "test_chats.test_options_and_rows_reach_the_chat_template",
    "--documents": "test_chats.test_options_and_rows_reach_the_chat_template",
    "--chat-template-kwargs": "test_chats.test_options_and_rows_reach_the_chat_template",
    "--reward-view": "test_chats.test_reward_view_leaves_out_the_thinking",
    "--json": "used by every test here",
    "--quiet": "test_progress_goes_to_stderr_and_quiet_switches_it_off",
    "--debug": "test_debug_shows_the_traceback",
}


def record(ended):
    assert ended.code == 0, ended.err
    [found] = [json.loads(line) for line in ended.out.splitlines()]
    found["diagnostics"].pop("seconds")
    return found


def test_every_option_of_generate_has_a_test():
    assert options_of("generate") - {"--engine"} == set(GENERATE) | set(GENERATE_ELSEWHERE)


@pytest.mark.parametrize("option", GENERATE)
def test_option_of_generate_shows_in_the_record(generate, option):
    usual = record(generate("--json", "--beta", 0.5, PROMPT))
    # If both are given, the last one wins.
    beta = () if option == "--strategy" else ("--beta", 0.5)
    assert record(generate("--json", *beta, option, *GENERATE[option], PROMPT)) != usual


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--system", "be kind", "--plain"), 2, "Leave --plain out"),
        (("--all-candidates",), 2, "Add --json"),
        (("--overwrite",), 2, "Add --output"),
        (("--output", "answers.jsonl.gz"), 2, "Name e.g. answers.jsonl"),
        (("--prompt-field", "question"), 1, "Give a .jsonl file"),
        (("--prompts-per-call", 0), 2, "prompts-per-call"),
        (("-s", "best_of_n", "--beta", 0.1), 1, "has no field `beta`"),
        (("-s", "best_of_n", "--set", "temperature=0.5"), 1, "has no field `temperature`"),
        (("-s", "pessimism", "--set", "top_k=5"), 1, "has no field `top_k`"),
        (("--early-rejection", 0.5, "-s", "worst_of_n"), 1, "best_of_n"),
        (("--early-rejection", 1.5, "-s", "best_of_n"), 1, "early_rejection"),
        (("-k", 5, "-n", 4), 2, "must be at most --num-candidates (4), got 5"),
        (("--reward-label", "nonsense"), 1, "Choose one of"),
        (("--num-cand", 3), 2, "No such option"),
    ],
)
def test_option_that_would_not_be_used_is_refused(generate, options, code, told):
    ended = generate(*options, PROMPT)
    assert ended.code == code and told in unwrapped(ended.err) and ended.out == ""


def test_label_is_looked_for_in_the_reward_model(run, generate, policy):
    assert record(generate("--json", "--reward-label", "0", PROMPT)) == record(generate("--json", PROMPT))
    ended = run("generate", "-m", policy, "--reward-label", "0", PROMPT)
    assert ended.code == 2 and "Add --reward-model" in unwrapped(ended.err)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--beta", 0.1), "Strategy 'best_of_n' has no field `beta`"),
        (("--set", "betta=0.1"), "Strategy 'best_of_n' has no field `betta`"),
        # Keywords of sampling are not fields of a strategy, and are not set by the way.
        (("--set", "temperature=0.1"), "Strategy 'best_of_n' has no field `temperature`"),
        (("--set", "top_k=1"), "Strategy 'best_of_n' has no field `top_k`"),
        (("--set", "max_new_tokens=1"), "Strategy 'best_of_n' has no field `max_new_tokens`"),
        (("--set", "seed=1"), "Strategy 'best_of_n' has no field `seed`"),
        (("-k", 4), "num_return_sequences"),
        (("--early-rejection", 2.0), "early_rejection"),
    ],
)
@pytest.mark.parametrize("auto", [(), ("-s", "auto")])
def test_option_the_recommended_strategy_lacks_is_refused(run, policy, reward_model, tmp_path, options, told, auto):
    folder = recommending(
        policy, tmp_path / "policy", strategy="best_of_n", num_candidates=3, reward_model=str(reward_model)
    )
    ended = run("generate", "-m", folder, *auto, *options, PROMPT)
    assert ended.code == 1 and told in ended.err and ended.out == ""


def test_label_of_the_recommended_reward_model_is_refused(run, policy, tmp_path, reward_model):
    folder = recommending(policy, tmp_path / "policy", strategy="best_of_n", reward_model=str(reward_model))
    ended = run("generate", "-m", folder, "--reward-label", "0", PROMPT)
    assert ended.code == 2 and "Add --reward-model" in unwrapped(ended.err)


def test_set_is_the_strategy_s_and_temperature_sampling_s(run, generate, policy, reward_model, tmp_path):
    """The law of soft best-of-n is softmax(reward / reward_temperature) on the pool that is drawn."""
    entry = {"strategy": "soft_best_of_n", "num_candidates": 4, "reward_model": str(reward_model)}
    folder = recommending(policy, tmp_path / "policy", **entry, reward_temperature=9.0)

    def pool(*options):
        found = record(
            run("generate", "-m", folder, "--max-new-tokens", 6, "--json", "--all-candidates", *options, PROMPT)
        )
        return found["candidates"]

    def drawn(candidates):
        return [(candidate["response"], candidate["reward"]) for candidate in candidates]

    def law(candidates, temperature):
        rewards = torch.tensor([candidate["reward"] for candidate in candidates], dtype=torch.float64)
        return pytest.approx((rewards / temperature).softmax(0).tolist(), abs=1e-6)

    usual, set_ = pool(), pool("--set", "reward_temperature=0.1")
    assert drawn(set_) == drawn(usual)
    assert [candidate["probability"] for candidate in usual] == law(usual, 9.0)
    assert [candidate["probability"] for candidate in set_] == law(usual, 0.1)
    cold = record(generate("--json", "--all-candidates", "--temperature", 0.5, PROMPT))["candidates"]
    both = pool("--set", "reward_temperature=0.1", "--temperature", 0.5)
    assert drawn(both) == drawn(cold) != drawn(usual)
    assert [candidate["probability"] for candidate in both] == law(cold, 0.1)


# Options of `calibrate`, whose use shows in another pool or another calibration.
CALIBRATE = {
    "--num-reference": (4,),
    "--max-new-tokens": (2,),
    "--temperature": (0.3,),
    "--seed": (1,),
    "--plain": (),
}
CALIBRATE_ELSEWHERE = {
    "--chat-template-kwargs": "test_arguments_reach_the_chat_template",
    "--tools": "test_chats.test_calibration_has_the_arguments_and_the_view",
    "--documents": "test_chats.test_calibration_has_the_arguments_and_the_view",
    "--reward-view": "test_chats.test_calibration_has_the_arguments_and_the_view",
    "--file": "test_calibrate_then_train_by_regression",
    "--model": "test_calibrate_then_train_by_regression",
    "--reward-model": "test_calibrate_then_train_by_regression",
    "--model-name-or-path": "test_calibrate_takes_the_names_of_trl_and_a_data_set",
    "--reward-funcs": "test_calibrate_takes_the_names_of_trl_and_a_data_set",
    "--reward-model-name-or-path": "test_calibrate_reads_a_split_and_a_column",
    "--dataset-name": "test_calibrate_takes_the_names_of_trl_and_a_data_set",
    "--dataset-config": "test_calibrate_reads_a_split_and_a_column",
    "--dataset-train-split": "test_calibrate_reads_a_split_and_a_column",
    "--prompt-column": "test_calibrate_reads_a_split_and_a_column",
    "--device": "as for generate",
    "--batch-size": "changes only speed",
    "--predict": "test_predict_says_how_far_it_is_off",
    "--quiet": "as for generate",
    "--debug": "as for generate",
}


@pytest.fixture
def calibrated(run, policy, reward_model, tmp_path):
    """Return a run of `hf-itp calibrate` on ten prompts, and the files it left."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"how do i bake bread {'and bread ' * count}\n" for count in range(10)))

    def calibrated(*options):
        folder = tmp_path / "calibration"
        small = ("-k", 3, "--max-new-tokens", 4, "-q")
        ended = run("calibrate", folder, "-f", prompts, "-m", policy, "-r", reward_model, *small, *options)
        assert ended.code == 0, ended.err
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        shutil.rmtree(folder)
        return ended, files

    return calibrated


def test_every_option_of_calibrate_has_a_test():
    assert options_of("calibrate") == set(CALIBRATE) | set(CALIBRATE_ELSEWHERE)


def test_options_of_calibrate_show_in_the_pool(calibrated):
    usual = calibrated()[1]["reference_pool.jsonl"]
    for option, value in CALIBRATE.items():
        assert calibrated(option, *value)[1]["reference_pool.jsonl"] != usual, option


def test_predict_says_how_far_it_is_off(calibrated):
    assert "Prompts without references" in calibrated("--predict")[0].out
    assert "Prompts without references" not in calibrated()[0].out


def test_chat_in_plain_text_is_refused_with_the_remedy(run, policy, reward_model, tmp_path):
    rows = json.dumps({"messages": [{"role": "user", "content": "how"}]})
    for command in (("generate",), ("calibrate", tmp_path / "out", "-f", "-")):
        ended = run(*command, "-m", policy, "-r", reward_model, "--plain", stdin=rows)
        assert ended.code == 1 and "without `--plain`" in ended.err


DEMO = {
    "--num-candidates": (3,),
    "--max-new-tokens": (3,),
    "--temperature": (0.2,),
    "--seed": (1,),
    "--beta": (0.001,),
}


def test_options_of_demo_show_in_its_pools(run, policy, reward_model, tmp_path):
    def prompts(*options):
        small = ("--num-candidates", 4, "--max-new-tokens", 4, "--output", tmp_path / "demo.png")
        ended = run("demo", "-m", policy, "-r", reward_model, *small, "--json", *options)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)["prompts"]

    usual = prompts("--beta", 0.5)
    for option, value in DEMO.items():
        assert prompts("--beta", 0.5, option, *value) != usual, option
    elsewhere = {"--model", "--reward-model", "--device", "--output", "--json", "--debug"}
    assert options_of("demo") == set(DEMO) | elsewhere
