"""Test a run from its arguments: what it takes, what it refuses by name, and that it trains what it says."""

from __future__ import annotations

import json
import math
import re

import pytest
from datasets import Dataset

from hf_itp import RewardCalibrator
from hf_itp.errors import ArgumentError, LoadError
from hf_itp.rewards import RewardModel
from hf_itp.sampling.drawing import prompt_ids
from hf_itp.training.run import TrainingRun
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for", "how hot is it"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
K = 20
SOLVERS = ("rl", "quantile_regression")

pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return str(saved_policy(folder)), saved(folder / "reward", tiny_classifier("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def calibration(models, tmp_path_factory):
    """Write references of all prompts, as `hf-itp calibrate` does; return their folder."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("calibration")
    RewardCalibrator.fit(
        AutoModelForCausalLM.from_pretrained(models[0]),
        RewardModel.from_pretrained(models[1]),
        CHATS,
        num_reference=K,
        tokenizer=tiny_tokenizer(),
        output_dir=folder,
        max_new_tokens=4,
        progress=False,
    )
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    return file_of(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])


def file_of(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def as_drawn(solver):
    """Return the options with which reinforcement draws like the calibration; a regression draws nothing."""
    return ("--max_completion_length", "4") if solver == "rl" else ()


def read(models, tmp_path, *more):
    settings = [
        "--model", models[0], "--reward_model", models[1], "--output_dir", str(tmp_path / "out"),
        "--per_device_train_batch_size", "4", "--max_steps", "1", "--report_to", "none", "--use_cpu", "true",
    ]  # fmt: skip
    return TrainingRun.from_command_line([*settings, *more])


def shown(run):
    """Return transform, its t and beta, as the header shows them."""
    summary = run.summary()
    t = re.search(r"t=([-\d.e]+)", summary["transform"])
    return summary["transform"], float(t[1]) if t else None, float(summary["beta"])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_header_shows_what_will_be_trained(models, tmp_path, prompts, calibration, solver, calibrated):
    """`auto` takes no t above the root of the number of references, which is one less for a regression."""
    more = ("--calibration", calibration, *as_drawn(solver)) if calibrated else ("--num_reference", "90")
    run = read(models, tmp_path, "--solver", solver, "--train_file", prompts, "--num_candidates", "16", *more)
    transform, t, beta = shown(run)
    trained = run._trainer().objective
    assert transform == str(trained.transform) and beta == pytest.approx(trained.beta, rel=1e-5)
    count = (K if calibrated else 90) - (solver == "quantile_regression")
    assert t == math.isqrt(count)
    assert run.summary()["references"].startswith(f"{K if calibrated else 90} per prompt")


def test_regression_trains_on_the_prompts_of_its_file(models, tmp_path, calibration):
    """One step's batch holds all responses: K for each prompt of the file, and none for another."""
    regression = ("--solver", "quantile_regression", "--calibration", calibration, "--transform", "identity")
    some = file_of(tmp_path / "some.jsonl", [{"prompt": PROMPTS[2]}, {"prompt": PROMPTS[0]}, {"prompt": PROMPTS[2]}])
    trained = read(models, tmp_path, *regression, "--train_file", some).train()
    begun = [prompt_ids(tiny_tokenizer(), chat) for chat in (CHATS[0], CHATS[2])]
    assert [row["prompt_ids"] for row in trained.train_dataset] == [ids for ids in begun for _ in range(K)]
    everything = read(models, tmp_path, *regression)
    assert everything.summary()["prompts"] == f"those of {calibration}"
    assert len(everything.train().train_dataset) == len(PROMPTS) * K


@pytest.mark.parametrize("solver", SOLVERS)
def test_prompt_that_the_calibration_lacks_is_refused(models, tmp_path, calibration, solver):
    other = file_of(tmp_path / "other.jsonl", [{"prompt": PROMPTS[0]}, {"prompt": "what is felt"}])
    given = ("--calibration", calibration, "--train_file", other, *as_drawn(solver))
    run = read(models, tmp_path, "--solver", solver, *given)
    with pytest.raises(ArgumentError, match="what is felt"):
        run._trainer()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_file_that_is_not_there_is_refused(models, tmp_path, calibration, solver, calibrated):
    more = ("--calibration", calibration) if calibrated else ()
    with pytest.raises(ArgumentError, match=r"got none at 'nowhere.jsonl'"):
        read(models, tmp_path, "--solver", solver, "--train_file", "nowhere.jsonl", *more)


@pytest.mark.parametrize("solver", SOLVERS)
def test_calibration_that_is_not_there_is_refused(models, tmp_path, prompts, solver):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match=r"must hold|must be a file"):
        read(models, tmp_path, "--solver", solver, "--train_file", prompts, "--calibration", str(tmp_path / "empty"))


def test_other_columns_stay_beside_the_prompts(models, tmp_path):
    rows = [{"question": prompt, "solution": str(index), "prompt": "old"} for index, prompt in enumerate(PROMPTS)]
    file = file_of(tmp_path / "rows.jsonl", rows)
    for plain, expected in (((), CHATS), (("--plain",), PROMPTS)):
        run = read(models, tmp_path, "--train_file", file, "--prompt_column", "question", *plain)
        data = run._dataset(tiny_tokenizer())
        assert isinstance(data, Dataset)
        assert data["prompt"][:] == expected and data["solution"][:] == ["0", "1", "2"]


CALIBRATED = ("--calibration", "CALIBRATION")
REGRESSION = ("--solver", "quantile_regression")
UNUSED = [
    # name, its value, what else is given
    ("dataset_config", "x", ()),
    ("dataset_train_split", "validation", ()),
    ("dataset_train_split", "train", REGRESSION),
    ("lora_alpha", "8", ()),
    ("lora_alpha", "32", REGRESSION),
    ("lora_target_modules", "q_proj", ()),
    ("max_completion_length", "8", (*REGRESSION, *CALIBRATED)),
    ("num_reference", "30", CALIBRATED),
    ("num_reference", "30", (*REGRESSION, *CALIBRATED)),
    ("strategy_fields", '{"beta": 0.1}', ("--strategy", "none")),
    ("num_candidates", "8", ("--strategy", "none")),
    ("shared_prefix_rollouts", "true", ("--use_vllm", "true")),
    ("remove_unused_columns", "true", REGRESSION),
    ("eval_strategy", "steps", ("--eval_steps", "5")),
    ("eval_steps", "5", REGRESSION),
    ("per_device_eval_batch_size", "2", ()),
    ("do_train", "false", ()),
    ("do_predict", "true", ()),
    ("label_smoothing_factor", "0.1", REGRESSION),
    ("reward_weights", "2.0", ()),
    ("trust_remote_code", "true", ()),
    ("model_init_kwargs", '{"dtype": "float16"}', ()),
]


@pytest.mark.parametrize(("name", "value", "more"), UNUSED)
@pytest.mark.parametrize("where", ["words", "file"])
def test_argument_that_the_run_would_not_use_is_refused_by_name(
    models, tmp_path, prompts, calibration, name, value, more, where
):
    more = [calibration if word == "CALIBRATION" else word for word in more]
    arguments = ["--train_file", prompts, *more]
    read(models, tmp_path, *[word for word in arguments if word not in ("--eval_steps", "5")])
    if where == "file":
        (tmp_path / "run.yaml").write_text(f"{name}: {value}\n")
        arguments += ["--config", str(tmp_path / "run.yaml")]
    else:
        arguments += [f"--{name}", value]
    with pytest.raises(ArgumentError, match=rf"`({name}|eval_steps)` must have an effect, got .*, which has none: "):
        read(models, tmp_path, *arguments)


def test_two_sources_of_prompts_and_none_are_refused(models, tmp_path, prompts, calibration):
    for more in ((), ("--calibration", calibration), ("--train_file", prompts, "--dataset_name", "x"), REGRESSION):
        with pytest.raises(ArgumentError, match="Name one source of prompts"):
            read(models, tmp_path, *more)
    for name, value in (("prompt_column", "question"), ("plain", "true")):
        with pytest.raises(ArgumentError, match=f"`{name}` must have an effect, got .*, which has none: "):
            read(models, tmp_path, *REGRESSION, "--calibration", calibration, f"--{name}", value)


def test_argument_that_says_what_is_so_is_taken(models, tmp_path, prompts, calibration):
    usual = ["--do_train", "true", "--eval_strategy", "no", "--num_reference", str(K), "--calibration", calibration]
    for solver in SOLVERS:
        assert read(models, tmp_path, "--solver", solver, "--train_file", prompts, *usual).num_reference == K


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--train_fil", "x"],
            r"`--train_fil` must be an option of a run, got no such name. Did you mean `--train_file`\?",
        ),
        (["--num_gen", "4"], r"`--num_gen` .*Did you mean `--num_generations`\?"),
        (["--lora", "8"], r"Did you mean `--lora_r`\?"),
        (["--target-k=1"], r"`--target-k` .*Did you mean `--target_kl`\?"),
        (["--trian_file", "x"], r"Did you mean `--train_file`\?"),
        (["--resum"], r"Did you mean `--resume`\?"),
        (["--all"], r"Did you mean `--all-options`\?"),
        (["--partition", "empirical"], "`--partition` must come with solver='quantile_regression'"),
        (
            ["--num_generations", "2", "--solver", "quantile_regression"],
            "`--num_generations` must come with solver='rl'",
        ),
        (["prompts.jsonl"], "must follow an option, got 'prompts.jsonl'"),
        (["--num_candidates", "four"], "argument --num_candidates/--num-candidates: invalid int value: 'four'"),
        (["--solver", "magic"], "`solver` must be one of 'rl'"),
        (["--config"], "`--config` must have a value"),
    ],
)
def test_name_that_is_not_whole_is_refused_with_the_nearest(models, tmp_path, prompts, words, told):
    with pytest.raises(ArgumentError, match=told):
        read(models, tmp_path, "--train_file", prompts, *words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "train_fil: x",
            r"`train_fil` must be a key of the file of a run, got no such name. Did you mean `train_file`\?",
        ),
        ("target_kl: 1\ntarget_kl: 2", "`target_kl` must be given once"),
        ("num_candidates: 4.5", "argument --num_candidates/--num-candidates: invalid int value: '4.5'"),
        ("num_candidates: yes", "argument --num_candidates/--num-candidates: invalid int value: 'True'"),
        ("partition: empirical", "`partition` must come with solver='quantile_regression'"),
        ("- a", "must hold `name: value` lines"),
        ("a: [", "`--config` must be readable"),
        ("env: 3", "`env` must hold `NAME: value` lines"),
    ],
)
def test_file_that_does_not_hold_is_refused(models, tmp_path, prompts, text, told):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=told):
        read(models, tmp_path, "--train_file", prompts, "--config", str(tmp_path / "run.yaml"))


def test_file_and_words_agree_on_every_kind_of_value(models, tmp_path, prompts):
    (tmp_path / "run.yaml").write_text(
        f"train_file: {prompts}\nlearning_rate: 1e-6\ntarget_kl: 1\nnum_candidates: 8\nlora_target_modules: [q_proj]\n"
        "lora_r: 4\nstrategy: pessimism\nstrategy_fields: {beta: 0.02}\nbeta:\nsolver: quantile_regression\n"
    )
    by_file = read(models, tmp_path, "--config", str(tmp_path / "run.yaml"))
    by_words = read(
        models, tmp_path, "--train_file", prompts, "--learning_rate=1e-6", "--target_kl", "1", "--num_candidates", "8",
        "--lora_target_modules", "q_proj", "--lora_r", "4", "--strategy", "pessimism", "--strategy-fields",
        '{"beta": 0.02}', "--solver", "rl", "--solver", "quantile_regression",
    )  # fmt: skip
    assert by_file.run == by_words.run and by_file.objective == by_words.objective
    assert by_file.args.learning_rate == 1e-6 and by_file.args.strategy_fields == {"beta": 0.02}
    assert read(models, tmp_path, "--config", str(tmp_path / "run.yaml"), "--lora_r", "2").run.lora_r == 2


def test_checkpoint_that_is_named_is_gone_on_from(models, tmp_path, prompts, calibration):
    regression = [*REGRESSION, "--calibration", calibration, "--save_steps", "1", "--transform", "identity"]
    read(models, tmp_path, *regression).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-1")
    further = read(models, tmp_path, *regression, "--max_steps", "2", "--resume_from_checkpoint", checkpoint)
    assert further.checkpoint(resume=False) == checkpoint
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    marked = {**state, "log_history": [*state["log_history"], {"step": 1, "from the checkpoint": 7}]}
    (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(marked))
    assert {"step": 1, "from the checkpoint": 7} in further.train().state.log_history
    with pytest.raises(ArgumentError, match="Leave one of them out"):
        further.checkpoint(resume=True)
    with pytest.raises(ArgumentError, match="got none at 'nowhere'"):
        read(models, tmp_path, *regression, "--resume_from_checkpoint", "nowhere").train()
