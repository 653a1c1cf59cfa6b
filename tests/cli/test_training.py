"""Test `hf-itp calibrate` and `hf-itp train`, from prompts in a file to a policy that recommends its decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"
PROMPTS = ["how do you bake bread", "what is salt for"]

pytestmark = [
    pytest.mark.uses_global_rng,  # transformers' Trainer seeds it
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    policy = str(saved_policy(folder))
    return policy, saved(folder / "reward", tiny_classifier("llama"), tiny_tokenizer())


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    return str(path)


def settings(models, prompts, output):
    return [
        "--model", models[0], "--reward_model", models[1], "--train_file", prompts, "--output_dir", str(output),
        "--num_reference", "32", "--transform", "exponential", "--t", "5", "--max_completion_length", "4",
        "--max_steps", "2", "--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu", "true",
    ]  # fmt: skip


def calibrate(run, models, prompts, folder, *more):
    return run(
        "calibrate", str(folder), "-f", prompts, "-m", models[0], "-r", models[1], "-k", "32",
        "--max-new-tokens", "4", "-q", *more,
    )  # fmt: skip


@pytest.mark.parametrize("plain", [(), ("--plain",)])
def test_calibrate_then_train_by_regression(run, models, prompts, tmp_path, plain):
    shown = calibrate(run, models, prompts, tmp_path / "calibration", *plain)
    assert shown.code == 0, shown.err
    assert "2 prompts with 32 references each" in shown.out
    again = calibrate(run, models, prompts, tmp_path / "calibration", *plain)
    assert again.code == 0 and again.out == shown.out
    other = calibrate(run, models, prompts, tmp_path / "calibration", *plain, "--seed", "7")
    assert other.code == 1 and "Choose another folder" in other.err

    output = tmp_path / "trained"
    arguments = [*settings(models, prompts, output), *plain]
    # The responses are drawn already.
    length = arguments.index("--max_completion_length")
    del arguments[length : length + 2]
    calibration = str(tmp_path / "calibration")
    shown = run("train", *arguments, "--solver", "quantile_regression", "--calibration", calibration)
    assert shown.code == 0, shown.err
    assert json.loads((output / "generation_config.json").read_text())["hf_itp"]["strategy"] == "best_of_n"
    assert (output / "calibration.json").is_file() and (output / "README.md").is_file()


def test_calibrate_takes_the_names_of_trl_and_a_data_set(run, models, prompts, tmp_path):
    assert calibrate(run, models, prompts, tmp_path / "own").code == 0
    shown = run(
        "calibrate", str(tmp_path / "trl"), "--dataset_name", prompts, "--model_name_or_path", models[0],
        "--reward_funcs", models[1], "--num_reference", "32", "--max_new_tokens", "4", "-q",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    for name in ("calibration.safetensors", "calibration.json", "reference_pool.jsonl"):
        assert (tmp_path / "trl" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()


def test_calibrate_reads_a_split_and_a_column(run, models, prompts, tmp_path):
    assert calibrate(run, models, prompts, tmp_path / "own").code == 0
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["how hot is it"]), ("validation", PROMPTS)):
        rows = [json.dumps({"question": text, "prompt": "other"}) for text in texts]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    line = [
        "calibrate", str(tmp_path / "data set"), "--dataset-name", str(tmp_path / "data"),
        "--dataset-train-split", "validation", "--prompt-column", "question", "-m", models[0],
        "--reward-model-name-or-path", models[1], "-k", "32", "--max-new-tokens", "4", "-q",
    ]  # fmt: skip
    shown = run(*line)
    assert shown.code == 0, shown.err
    pools = [(tmp_path / name / "reference_pool.jsonl").read_bytes() for name in ("own", "data set")]
    assert pools[0] == pools[1]
    for wrong in (["--dataset-config", "nowhere"], ["--dataset-train-split", "dev"], ["--prompt-column", "answer"]):
        shown = run(*line, *wrong)
        assert shown.code == 1 and wrong[1] in shown.err, shown.err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--model-name-or-path", "org/other"), "`--model` and `--model-name-or-path` are two names of one option"),
        (("--reward_funcs", "org/other"), "`--reward-model` and `--reward-funcs` are two names of one option"),
        (("--dataset-name", "org/data"), "One of `--file` and `--dataset-name` must be given, got both"),
        (("--dataset_train_split", "dev"), "`--dataset-train-split` must come with `--dataset-name`"),
        (("--prompt-column", "question"), "`--prompt-column` must come with `--dataset-name`"),
        (("--num-referenc", "8"), "--num-reference"),
        (("--num_ref", "8"), "No such option"),
    ],
)
def test_calibrate_refuses_two_values_of_one_option_and_half_a_name(run, models, prompts, tmp_path, more, told):
    shown = calibrate(run, models, prompts, tmp_path / "calibration", *more)
    assert shown.code in (1, 2) and told in shown.err
    assert not (tmp_path / "calibration").exists()


def test_finished_run_does_nothing_and_says_so(run, models, prompts, tmp_path):
    arguments = [*settings(models, prompts, tmp_path / "trained"), "--solver", "quantile_regression"]
    assert run("train", *arguments).code == 0
    shown = run("train", *arguments, "--resume")
    assert shown.code == 0 and "nothing to do: all steps are made already" in shown.err
    assert "nothing to do" in run("train", *arguments, "--resume", "--dry_run").out


@pytest.mark.slow
def test_calibrate_then_train_by_reinforcement(run, models, prompts, tmp_path):
    assert calibrate(run, models, prompts, tmp_path / "calibration").code == 0
    arguments = settings(models, prompts, tmp_path / "trained")
    arguments += ["--num_generations", "2", "--calibration", str(tmp_path / "calibration")]
    shown = run("train", *arguments)
    assert shown.code == 0, shown.err


@pytest.mark.slow
def test_train_by_reinforcement_from_a_file_and_resume(run, models, prompts, tmp_path):
    output = tmp_path / "trained"
    arguments = [*settings(models, prompts, output), "--num_generations", "2", "--save_steps", "1"]
    assert run("train", *arguments).code == 0
    assert (output / "checkpoint-2").is_dir()
    # Two more steps, from the second on.
    arguments[arguments.index("--max_steps") + 1] = "4"
    shown = run("train", *arguments, "--resume")
    assert shown.code == 0, shown.err
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_options_win_over_the_file(run, models, prompts, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train_file: {prompts}\noutput_dir: {tmp_path}/out\ntarget_kl: 0.25\nreport_to: none\n")
    assert "0.250 nats" in run("train", "--config", str(recipe), "--dry-run").out
    assert "0.750 nats" in run("train", "--config", str(recipe), "--dry-run", "--target_kl", "0.75").out


def test_full_scale_recipe_holds(run):
    shown = run("train", "--config", str(RECIPES / "ctrl_7b.yaml"), "--dry-run")
    assert shown.code == 0, shown.err
    assert "Qwen2.5-7B-Instruct" in shown.out and "best_of_n, N = 4" in shown.out and "1.000 nats" in shown.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output_dir", "x"], "One of `train_file` and `dataset_name`"),
        (["--output_dir", "x", "--train_file", "y", "--solver", "magic"], "`solver` must be one of 'rl'"),
        (["--output_dir", "x", "--train_file", "y", "--target_kl", "-1"], "`kl` must be positive"),
        (["--output_dir", "x", "--train_file", "y", "--strategy", "nonsense"], "Unknown strategy"),
        (["--config", "/does/not/exist.yaml"], "got none at"),
        (
            ["--output_dir", "x", "--train_file", "y", "--betta", "1"],
            "`--betta` must be an option of a run, got no such name",
        ),
        (["--output_dir", "x", "--train_fil", "y"], "Did you mean `--train_file`?"),
        (["--output_dir", "x", "--train_file", "y", "--dry"], "Did you mean `--dry-run`?"),
        (["--output_dir", "x", "--train_file", "y"], "got none at 'y'"),
        (["y.jsonl", "--output_dir", "x"], "must follow an option, got 'y.jsonl'"),
    ],
)
def test_configurations_that_do_not_hold_are_refused(run, arguments, told):
    shown = run("train", *arguments, "--dry-run")
    assert shown.code == 1 and told in shown.err


def test_all_options_lists_those_of_the_trainer(run):
    shown = run("train", "--all-options")
    assert shown.code == 0
    for name in ("--target_kl", "--num_generations", "--lora_r", "--use_vllm"):
        assert name in shown.out
    assert "--partition" in run("train", "--all-options", "--solver", "quantile_regression").out
