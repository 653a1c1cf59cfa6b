"""
Test that the benchmarks run to the end, count what they say, and say what they leave out. Nothing is timed.
"""

from __future__ import annotations

import csv

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.operations import operations_needed
from benchmarks.prompts import chats, passages
from benchmarks.scoring import padded_rewards
from benchmarks.workloads import FULL, QUICK, STRATEGIES, Workload
from hf_itp import get_strategy
from hf_itp.rewards import RewardModel
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import saved_policy, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    policy = saved_policy(folder, max_position_embeddings=256)
    tiny_classifier("llama", max_position_embeddings=256).save_pretrained(folder / "reward")
    tiny_tokenizer().save_pretrained(folder / "reward")
    return ["--model", str(policy), "--reward-model", str(folder / "reward"), "--threads", "1"]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_kind_of_workload_is_measured_and_written(models, tmp_path, capsys):
    workloads = ["p60-n2-t4", "p60-n5-t4", "score-p60-n6-t10", "select-b20-n30"]
    contestants = ["ours", "generate", "generate_batch", "padded forward", "best_of_n"]
    main([*models, "--only", *workloads, "--against", *contestants, "--repeats", "2", "--output", str(tmp_path)])

    rows = {(row["workload"], row["contestant"]): row for row in read(tmp_path / "results.csv")}
    sampled = [(name, who) for name in workloads[:2] for who in contestants[:3]]
    scored = [(workloads[2], who) for who in ("ours", "padded forward")]
    assert list(rows) == [*sampled, *scored, (workloads[3], "best_of_n")]
    assert all(row["repeats"] == "2" and not row["skipped"] for row in rows.values())
    assert all(float(row["peak_mib"]) > 1 and row["torch"] == torch.__version__ for row in rows.values())
    for name, who in sampled:
        candidates = Workload.parse(name).candidates
        assert candidates <= float(rows[name, who]["mean_tokens"]) <= 4 * candidates
        assert float(rows[name, who]["matrix_product_share"]) > 0
    assert rows[sampled[0]]["path"] == "shared"
    assert float(rows[scored[1]]["largest_reward_difference"]) < 1e-4

    passes = read(tmp_path / "passes.csv")
    seeds = [one["seed"] for one in passes if (one["workload"], one["contestant"]) == sampled[0]]
    assert seeds == ["0", "1"]
    for name in ("throughput", "scaling", "memory", "selection"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    out = " ".join(capsys.readouterr().out.split())
    assert all(name in out for name in (*workloads, *contestants, "load average"))


@pytest.mark.slow
def test_what_would_take_too_long_is_left_out_and_said(models, tmp_path, capsys):
    workloads = ["p12-n2-t3", "p12-n4-t3"]
    few = ["--patience", "0", "--repeats", "1", "--output", str(tmp_path)]
    rows = main([*models, "--only", *workloads, "--against", "ours", *few])
    assert [row["repeats"] for row in rows] == [1, 0]
    assert "--patience" in rows[1]["skipped"]
    assert f"{workloads[1]}: without ours: about" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_contestant_that_fails_is_named_with_its_error(models, tmp_path):
    options = ["--only", "p12-n2-t3", "--against", "generate", "llama.cpp", "--output", str(tmp_path)]
    rows = main([*models, "--model", str(tmp_path / "absent"), *options])
    assert [row["repeats"] for row in rows] == [0, 0]
    assert rows[0]["skipped"].startswith("failed: LoadError: ")
    assert "not installed" in rows[1]["skipped"] or "on the embedded policy" in rows[1]["skipped"]


@pytest.mark.parametrize("name", sorted({*FULL, *QUICK, "b3-p40-n2-t4"}))
def test_name_of_a_workload_is_its_definition(name):
    assert Workload.parse(name).name == name


@pytest.mark.parametrize("name", ["", "n16", "p600", "p600-n0-t96", "p600-n16-t96-x", "draw-p600-n16-t96"])
def test_other_names_are_refused_with_examples(name):
    with pytest.raises(ValueError, match=r"Write p600-n64-t96"):
        Workload.parse(name)


def test_batch_goes_from_a_bare_question_to_the_longest_prompt():
    lengths = Workload.parse("b8-p600-n16-t96").prompt_lengths()
    assert len(lengths) == 8 and lengths == sorted(lengths) and (lengths[0], lengths[-1]) == (40, 600)
    assert Workload.parse("p600-n16-t96").prompt_lengths() == [600]


def test_measured_strategies_exist():
    for name, fields in STRATEGIES.items():
        assert get_strategy(name, **fields).name == name


def test_prompts_and_responses_have_the_length_asked_for(tokenizer):
    asked = [40, 100, 400]
    prompts = chats(tokenizer, asked)
    lengths = [
        len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        for chat in prompts
    ]
    assert all(0.8 * wanted <= length <= wanted for wanted, length in zip(asked, lengths, strict=True))
    assert len({chat[0]["content"] for chat in prompts}) == 3
    responses = passages(tokenizer, [5, 9])
    assert len(set(responses)) == 2


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_operations_are_those_the_model_makes(architecture):
    model = tiny_model(architecture)
    model.set_attn_implementation("eager")  # in matrix products, which the counter sees
    length, width = 12, model.config.hidden_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(length)[None], logits_to_keep=1)
    # The model computes whole squares of attention and masks what no token looks at. The two hundredths are for
    # weights that are not matrices.
    masked = 4 * model.config.num_hidden_layers * width * (length * length - length * (length + 1) // 2)
    needed = operations_needed(model, length - 1, [1])
    assert needed == pytest.approx(counter.get_total_flops() - masked, rel=0.02)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_padded_forward_gives_the_rewards_ours_gives(architecture, tokenizer):
    model = tiny_classifier(architecture)
    model.config.pad_token_id = tokenizer.pad_token_id
    prompts = chats(tokenizer, [30, 30, 30])
    if architecture == "bert":
        tokenizer.chat_template, tokenizer.padding_side = None, "right"  # as encoders' are
    responses = ["bake bread", "mix flour and water", "yes"]
    ours = RewardModel(model, tokenizer)(prompts, responses)
    torch.testing.assert_close(padded_rewards(model, tokenizer, prompts, responses), ours, rtol=1e-4, atol=1e-4)
