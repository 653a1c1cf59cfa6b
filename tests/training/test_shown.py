"""Test that the header shows what is trained, that a run evaluates as told, and that a finished run stays as it is."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_itp import CTRLArguments, CTRLTrainer
from hf_itp.errors import ArgumentError, LoadError
from hf_itp.training.run import TrainingRun
from tests.distributed.launching import accelerate_launch
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import PromptBoundReward, saved_policy, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for", "how hot is it"]
HELD_OUT = ["when do you eat bread", "what is water for"]

pytestmark = pytest.mark.uses_global_rng  # transformers' Trainer seeds it


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return str(saved_policy(folder)), saved(folder / "reward", tiny_classifier("llama"), tiny_tokenizer())


def file_of(path, prompts):
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return str(path)


def words(models, tmp_path, *more):
    return [
        "--model", models[0], "--reward_model", models[1], "--output_dir", str(tmp_path / "out"), "--max_steps", "2",
        "--train_file", file_of(tmp_path / "prompts.jsonl", PROMPTS), "--per_device_train_batch_size", "4",
        "--num_reference", "8", "--transform", "identity", "--max_completion_length", "4", "--logging_steps", "1",
        "--report_to", "none", "--use_cpu", "true", *more,
    ]  # fmt: skip


def test_every_number_shown_is_the_trainers(models, tmp_path):
    run = TrainingRun.from_command_line(
        words(
            models, tmp_path, "--gradient_accumulation_steps", "3", "--num_generations", "2",
            "--learning_rate", "3e-4", "--lr_scheduler_type", "cosine", "--temperature", "0.7", "--top_p", "0.9",
            "--top_k", "5", "--seed", "11",
            "--lora_r", "2", "--lora_alpha", "6", "--lora_target_modules", "q_proj", "v_proj", "--dtype", "float32",
            "--strategy", "pessimism", "--strategy_fields", '{"beta": 0.25}', "--num_candidates", "6",
        )
    )  # fmt: skip
    shown, trainer = run.summary(), run._trainer()
    args = trainer.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert per_step == 12 and shown["batch"] == "12 responses per step: 4 x 3 accumulated x 1 process, 2 per prompt"
    assert args.num_generations == 2
    assert shown["length"] == f"{args.max_steps} steps" == "2 steps"
    assert shown["learning rate"] == "0.0003, cosine" and args.learning_rate == 3e-4
    drawn = trainer.draw.settings
    assert drawn["temperature"] == 0.7 and drawn["top_p"] == 0.9 and drawn["top_k"] == 5
    assert drawn["max_new_tokens"] == 4
    assert shown["responses"] == "at most 4 tokens, temperature 0.7, top_p 0.9, top_k 5"
    assert shown["seed"] == str(args.seed) == "11"
    lora = trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (2, 6, {"q_proj", "v_proj"})
    assert shown["trained"] == "LoRA of rank 2, alpha 6, on q_proj, v_proj"
    assert shown["policy"] == f"{models[0]} (float32)" and shown["reward model"] == models[1]
    entry = trainer.decoding_entry()
    assert shown["decoded with"] == "pessimism, N = 6, beta = 0.25"
    assert (entry["strategy"], entry["num_candidates"], entry["beta"]) == ("pessimism", 6, 0.25)
    assert shown["evaluation"] == "none during training" and trainer.eval_dataset is None
    card = trainer.card_facts().training
    for name in ("decoded with", "batch", "length", "learning rate", "responses", "seed"):
        assert card[name] == shown[name], "the card says what the header says"


@pytest.mark.slow
def test_two_processes_show_their_common_batch_once(models, tmp_path):
    """Two processes of 4 responses, 3 accumulated: 24 in a step."""
    shown = accelerate_launch(
        "-m", "hf_itp.cli", "train", *words(models, tmp_path, "--gradient_accumulation_steps", "3"), "--dry-run"
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("24 responses per step: 4 x 3 accumulated x 2 processes") == 1


def test_names_of_trl_are_ours(models, tmp_path):
    own = TrainingRun.from_command_line(words(models, tmp_path))
    line = words(models, tmp_path)
    line[0], line[2] = "--model-name-or-path", "--reward_funcs"
    by_trl = TrainingRun.from_command_line(line)
    assert by_trl.run == own.run
    line[2] = "--reward_model_name_or_path"
    assert TrainingRun.from_command_line(line).run == own.run
    (tmp_path / "run.yaml").write_text(f"model_name_or_path: {models[0]}\nreward_funcs: {models[1]}\n")
    by_file = TrainingRun.from_command_line([*words(models, tmp_path)[4:], "--config", str(tmp_path / "run.yaml")])
    assert by_file.run == own.run


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--model_name_or_path", "org/other"), "`--model` and `--model_name_or_path` are two names"),
        (("--reward-funcs", "org/other"), "`--reward_model` and `--reward_funcs` are two names"),
        (("--reward_funcs=a", "--reward_model_name_or_path=b"), "`--reward_model` and `--reward_funcs` are two names"),
        (("--model_name_or_pat", "x"), r"Did you mean `--model_name_or_path`\?"),
        (("--eval_fil", "x"), r"Did you mean `--eval_file`\?"),
    ],
)
def test_two_names_with_two_values_and_half_a_name_are_refused(models, tmp_path, more, told):
    with pytest.raises(ArgumentError, match=told):
        TrainingRun.from_command_line(words(models, tmp_path, *more))


def test_two_names_with_two_values_are_refused_in_a_file(models, tmp_path):
    (tmp_path / "run.yaml").write_text("model: a\nmodel_name_or_path: b\n")
    with pytest.raises(ArgumentError, match="`model` and `model_name_or_path` are two names"):
        TrainingRun.from_command_line([*words(models, tmp_path)[2:], "--config", str(tmp_path / "run.yaml")])
    # The command wins over the file under any name.
    run = TrainingRun.from_command_line([*words(models, tmp_path), "--config", str(write(tmp_path, "model: a"))])
    assert run.run.model == models[0]


def write(tmp_path, text):
    (tmp_path / "one.yaml").write_text(text)
    return tmp_path / "one.yaml"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_data_set_of_this_machine_is_read(models, tmp_path, kind):
    (tmp_path / "data").mkdir()
    file_of(tmp_path / "data" / "train.jsonl", PROMPTS)
    file_of(tmp_path / "data" / "test.jsonl", HELD_OUT)
    place = tmp_path / "data" / ("train.jsonl" if kind == "file" else "")
    line = words(models, tmp_path, "--dataset_name", str(place), "--plain")
    del line[line.index("--train_file") : line.index("--train_file") + 2]
    run = TrainingRun.from_command_line([*line, "--eval_strategy", "steps", "--eval_steps", "1"])
    assert run._dataset(tiny_tokenizer(), None, "train")["prompt"][:] == PROMPTS
    if kind == "folder":
        assert run._dataset(tiny_tokenizer(), None, "test")["prompt"][:] == HELD_OUT
        assert "split 'test', every 1 steps" in run.summary()["evaluation"]
    else:
        with pytest.raises(LoadError, match=r"`dataset_name` .*split 'test'\) could not|could not be loaded"):
            run._trainer()


def test_run_evaluates_on_its_file_at_its_steps(models, tmp_path):
    held_out = file_of(tmp_path / "held_out.jsonl", HELD_OUT)
    run = TrainingRun.from_command_line(
        words(models, tmp_path, "--eval_file", held_out, "--eval_strategy", "steps", "--eval_steps", "2",
              "--max_steps", "4", "--num_generations", "4", "--per_device_eval_batch_size", "4")
    )  # fmt: skip
    assert run.summary()["evaluation"] == f"{held_out}, every 2 steps, 4 responses per prompt"
    history = run.train().state.log_history
    measured = {logs["step"]: logs for logs in history if "eval_win_rate" in logs}
    assert sorted(measured) == [2, 4]
    for logs in measured.values():
        assert logs["eval_win_rate_low"] < logs["eval_win_rate"] < logs["eval_win_rate_high"]
        assert {"eval_best_of_4_win_rate", "eval_reward/raw", "eval_kl_sequence"} <= set(logs)


def test_logged_win_rate_is_that_of_the_evaluations_own_rollouts(tmp_path):
    """References and rollouts are what the reward saw; training rollouts since the last log do not count."""
    reward = PromptBoundReward()
    folder = saved_policy(tmp_path)
    trainer = CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward,
        CTRLArguments(
            str(tmp_path / "out"), num_reference=8, transform="identity", max_completion_length=4, max_steps=2,
            per_device_train_batch_size=4, per_device_eval_batch_size=4, num_generations=2, logging_steps=2,
            eval_strategy="steps", eval_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        eval_dataset=Dataset.from_dict({"prompt": HELD_OUT}),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.calibrate()
    references = {prompt: [] for prompt in (*PROMPTS, *HELD_OUT)}
    for prompts, completions in reward.calls:
        for prompt, completion in zip(prompts, completions, strict=True):
            references[prompt].append(reward.reward(prompt, completion))
    reward.calls.clear()
    trainer.train()
    rolled_out = [call for call in reward.calls if set(call[0]) <= set(HELD_OUT)]
    logged = [logs["eval_win_rate"] for logs in trainer.state.log_history if "eval_win_rate" in logs]
    assert len(logged) == 2 and len(rolled_out) % 2 == 0
    half = len(rolled_out) // 2
    for calls, rate in zip((rolled_out[:half], rolled_out[half:]), logged, strict=True):
        won = {prompt: [] for prompt in HELD_OUT}
        for prompt, completion in itertools.chain(*(zip(*call, strict=True) for call in calls)):
            mine = reward.reward(prompt, completion)
            won[prompt] += [(mine > other) + (mine == other) / 2 for other in references[prompt]]
        assert all(won.values())
        assert rate == pytest.approx(sum(sum(wins) / len(wins) for wins in won.values()) / len(won), abs=1e-9)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--eval_strategy", "steps", "--eval_steps", "5"), r"`eval_ste.*no prompts to evaluate on. Pass `eval_file`"),
        (("--eval_file", "HELD_OUT"), r"`eval_file` .*`eval_strategy` is 'no'"),
        (("--eval_file", "HELD_OUT", "--eval_strategy", "epoch", "--eval_steps", "5"), "`eval_steps` .*is 'epoch'"),
        (("--eval_file", "nowhere.jsonl", "--eval_strategy", "epoch"), "`eval_file` must be a file, got none"),
        (("--dataset_test_split", "dev", "--eval_strategy", "epoch"), "`dataset_test_split` .*needs `dataset_name`"),
        (
            ("--eval_file", "HELD_OUT", "--eval_strategy", "epoch", "--solver", "quantile_regression"),
            "`eval_file` .*hf-itp evaluate",
        ),
    ],
)
def test_evaluation_that_would_not_take_place_is_refused(models, tmp_path, more, told):
    held_out = file_of(tmp_path / "held_out.jsonl", HELD_OUT)
    more = [held_out if word == "HELD_OUT" else word for word in more]
    with pytest.raises(ArgumentError, match=told):
        TrainingRun.from_command_line(words(models, tmp_path, *more))


@pytest.mark.parametrize("solver", ["rl", "quantile_regression"])
def test_one_seed_gives_one_adapter(models, tmp_path, solver):
    """Whatever was drawn before: two runs of one seed are equal in every byte, that of another seed is not."""
    adapters = []
    for number, seed in enumerate((3, 3, 4)):
        torch.rand(number + 1)
        line = words(
            models, tmp_path, "--solver", solver, "--lora_r", "2", "--seed", str(seed), "--learning_rate", "1e-2"
        )
        line[line.index("--output_dir") + 1] = str(tmp_path / str(number))
        TrainingRun.from_command_line(line).train()
        adapters.append((tmp_path / str(number) / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1] != adapters[2]


@pytest.mark.parametrize("saving", ["steps", "no"])
@pytest.mark.parametrize("how", ["--resume", "output_dir", "checkpoint"])
def test_finished_run_is_left_as_it_is(models, tmp_path, saving, how):
    line = words(models, tmp_path, "--solver", "quantile_regression", "--save_strategy", saving, "--save_steps", "1")
    TrainingRun.from_command_line(line).train()
    out = tmp_path / "out"
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    resume = how == "--resume"
    if how == "checkpoint" and saving == "no":
        with pytest.raises(ArgumentError, match="must be a folder"):
            TrainingRun.from_command_line([*line, "--resume_from_checkpoint", str(out / "checkpoint-2")]).train()
        return
    place = {"--resume": [], "output_dir": [str(out)], "checkpoint": [str(out / "checkpoint-2")]}[how]
    again = [*line, *(["--resume_from_checkpoint", *place] if place else [])]
    run = TrainingRun.from_command_line(again)
    assert run.finished(resume) and run.train(resume=resume) is None
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    if saving == "steps":
        longer = TrainingRun.from_command_line([*again, "--max_steps", "3"])
        assert longer.finished(resume) is None
        assert longer.train(resume=resume).state.global_step == 3


def test_epochs_that_are_over_are_over(models, tmp_path):
    line = words(models, tmp_path, "--solver", "quantile_regression", "--max_steps", "-1", "--num_train_epochs", "1")
    assert TrainingRun.from_command_line(line).finished(resume=True) is None
    TrainingRun.from_command_line(line).train()
    assert TrainingRun.from_command_line(line).finished(resume=True)
    assert TrainingRun.from_command_line([*line, "--num_train_epochs", "2"]).finished(resume=True) is None


def test_folder_without_a_checkpoint_is_refused(models, tmp_path):
    (tmp_path / "empty").mkdir()
    run = TrainingRun.from_command_line(words(models, tmp_path, "--resume_from_checkpoint", str(tmp_path / "empty")))
    with pytest.raises(ArgumentError, match="must hold a checkpoint"):
        run.train()
