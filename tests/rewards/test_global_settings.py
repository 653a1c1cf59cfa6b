"""Test that default dtype, autocast, grad mode and quantization leave rewards and calibrations right."""

from __future__ import annotations

import ast
import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from hf_itp import get_strategy
from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.calibrated_reward import CalibratedReward
from hf_itp.errors import RewardModelError
from hf_itp.functional.finite_tradeoff import finite_tradeoff
from hf_itp.functional.transforms import get_transform
from hf_itp.rewards import CallableReward, ProcessRewardModel, RewardEnsemble, RewardModel
from hf_itp.strategies.registry import strategy_class
from tests.rewards.classifiers import tiny_classifier
from tests.test_structure import PACKAGE, as_ids
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["how do you bake bread", "what is salt for"] * 8
RESPONSES = [
    f"mix {word} so {other} yes" for word in ("flour", "salt", "water", "bread") for other in ("a", "all", "an", "and")
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float16 by default": lambda: default_dtype(torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
}


def hundreds(prompts, completions, **kwargs):
    """Return rewards that bfloat16 cannot tell apart."""
    return [100 + index / 1024 for index in range(len(completions))]


@functools.cache
def kinds():
    tokenizer = tiny_tokenizer()
    model = RewardModel(tiny_classifier("llama"), tokenizer)
    calibrator = RewardCalibrator(PROMPTS[:2], torch.linspace(-3, 3, 200).view(2, 100))
    steps = {"step_token": "so", "separator": " so "}
    answers = {"good_token": "good", "bad_token": "not", "step_token": "so", "separator": " so "}
    half = tiny_classifier("llama").to(torch.bfloat16)
    return {
        "decoder": model,
        "decoder alone": RewardModel(model.model, tokenizer, unbatched=True),
        "decoder in half": RewardModel(half, tokenizer),
        "encoder": RewardModel(tiny_classifier("bert"), tokenizer),
        "encoder in half": RewardModel(tiny_classifier("bert").to(torch.bfloat16), tokenizer),
        "steps": ProcessRewardModel(tiny_classifier("llama", num_labels=2, of_tokens=True), tokenizer, **steps),
        "answers": ProcessRewardModel(tiny_model("llama"), tokenizer, **answers),
        "function": CallableReward(hundreds),
        "ensemble": RewardEnsemble([model, CallableReward(hundreds)], aggregate="mean_minus_std"),
        "calibrated": CalibratedReward(model, calibrator),
    }


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", kinds())
def test_rewards_are_the_same_whatever_torch_is_set_to(kind, setting):
    reward = kinds()[kind]
    expected = reward(PROMPTS, RESPONSES)
    with SETTINGS[setting]():
        found = reward(PROMPTS, RESPONSES)
    assert found.dtype == torch.float32 and len(set(found.tolist())) > 2
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("setting", SETTINGS)
def test_calibration_is_the_same_whatever_torch_is_set_to(tmp_path, setting):
    rewards = torch.tensor([[100 + index / 1024 for index in range(64)]], dtype=torch.float32)
    place = torch.tensor([100 + 32 / 1024], dtype=torch.float32)
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"prompt": "how", "rewards": ' + str(rewards[0].tolist()) + "}")
    with SETTINGS[setting]():
        for calibrator in (RewardCalibrator(["how"], rewards), RewardCalibrator.from_pool(pool)):
            found = calibrator.calibrate(["how"], place)
            assert found.dtype == torch.float32 and found.item() == 32.5 / 64


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", ["best_of_n", "pessimism", "soft_best_of_n", "top_quantile", "best_of_poisson"])
def test_laws_are_the_same_whatever_torch_is_set_to(strategy, setting):
    rewards = torch.tensor([[1.0, 1.001, 0.3, -2.0, 0.7, 0.7]], dtype=torch.float32)
    fields = {name: 1.5 for name in list(strategy_class(strategy).field_names())[:1]}
    expected = get_strategy(strategy, **fields).probabilities(rewards)
    with SETTINGS[setting]():
        found = get_strategy(strategy, **fields).probabilities(rewards)
    assert found.dtype == torch.float64 and found.tolist() == expected.tolist()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("early_rejection", [None, 0.5])
def test_generate_selects_the_same_whatever_torch_is_set_to(setting, early_rejection):
    policy, reward = tiny_model("llama"), kinds()["decoder"]

    def drawn():
        output = policy.generate(
            torch.tensor([[1, 5, 6]]), strategy="best_of_n", reward_model=reward, prompts=["how"], num_candidates=8,
            max_new_tokens=6, seed=0, tokenizer=tiny_tokenizer(), early_rejection=early_rejection,
            return_dict_in_generate=True,
        )  # fmt: skip
        responses = [response.tolist() for response in output.candidates[0]]
        return dict(zip(map(tuple, responses), output.candidate_rewards[0].tolist(), strict=True)), output

    expected, _ = drawn()
    with SETTINGS[setting]():
        found, output = drawn()
    assert output.candidate_rewards.dtype == output.rewards.dtype == torch.float32
    # Under the caller's autocast the policy may draw other responses; equal responses are scored equally.
    common = found.keys() & expected.keys()
    assert len(common) > 2 and {key: found[key] for key in common} == {key: expected[key] for key in common}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_given_as_lists_keep_their_precision(dtype):
    third = 1 / 3
    with default_dtype(dtype):
        world = finite_tradeoff([third, third, third], torch.tensor([0.0, 1.0, 2.0]), "identity", beta=0.5)
        assert world.reference.tolist() == [third] * 3
        transform = get_transform("identity")
        assert transform.estimate([200, 301], 999).tolist() == pytest.approx([200 / 999, 301 / 999], abs=1e-15)


MAKERS = {"empty", "zeros", "ones", "full", "tensor", "as_tensor", "rand", "randn", "linspace", "logspace", "eye"}
SCORING = ("rewards", "calibration", "functional", "strategies", "embedded", "training")
FILES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.relative_to(PACKAGE).parts[0] in (*SCORING, "candidates.py", "rejecting_pools.py", "sharding.py")
]


@pytest.mark.parametrize("file", FILES, ids=as_ids)
def test_no_tensor_of_numbers_is_made_without_a_dtype(file):
    """Without a dtype it has torch's default, which belongs to the caller."""
    makers = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MAKERS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and "dtype" not in {keyword.arg for keyword in node.keywords}
    ]
    # Only this tensor keeps the dtype it was given: a reward function's own array.
    allowed = 1 if file.relative_to(PACKAGE).as_posix() == "rewards/values.py" else 0
    assert len(makers) <= allowed, f"lines {makers}"


def quantized(model: nn.Module, *layers: type) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torch.ao moves to torchao
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), set(layers), dtype=torch.qint8)


@pytest.mark.parametrize("architecture", ["llama", "bert", "roberta"])
def test_reward_of_a_quantised_head(architecture):
    """Compare with the head on the pooled token's hidden state, one response at a time, in any batch."""
    tokenizer, model = tiny_tokenizer(), tiny_classifier(architecture)
    name = "score" if architecture == "llama" else "classifier"
    setattr(model, name, quantized(nn.ModuleDict({"head": getattr(model, name)}), nn.Linear)["head"])
    reward = RewardModel(model, tokenizer)
    rewards = reward(PROMPTS, RESPONSES)
    for prompt, response, found in zip(PROMPTS, RESPONSES, rewards.tolist(), strict=True):
        ids = torch.tensor([reward._encoder.encode([prompt], [response])[0].ids])
        with torch.no_grad():
            if architecture == "llama":
                by_hand = model.score(model.model(ids).last_hidden_state[:, -1])
            else:
                by_hand = model(ids).logits
        # An encoder's head sees the batch at once, so its int8 scale is the batch's.
        assert found == pytest.approx(by_hand.item(), abs=1e-4 if architecture == "llama" else 0.1)
    assert len(set(rewards.tolist())) > 4


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_rewards_of_a_quantised_model(architecture):
    model = quantized(tiny_classifier(architecture), nn.Linear)
    rewards = RewardModel(model, tiny_tokenizer(), unbatched=True)(PROMPTS, RESPONSES)
    whole = RewardModel(tiny_classifier(architecture), tiny_tokenizer())(PROMPTS, RESPONSES)
    assert torch.corrcoef(torch.stack([rewards, whole]))[0, 1] > 0.9


def test_quantised_embeddings_count_their_ids():
    model = quantized(tiny_classifier("llama"), nn.Linear)
    embeddings = model.get_input_embeddings()
    embeddings.qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig
    model.set_input_embeddings(torch.ao.nn.quantized.Embedding.from_float(embeddings))
    reward = RewardModel(model, tiny_tokenizer())
    assert reward(PROMPTS, RESPONSES).isfinite().all()
    with pytest.raises(RewardModelError, match="vocabulary size"):
        small = tiny_classifier("llama", vocab_size=20)
        small.get_input_embeddings().qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig
        small.set_input_embeddings(torch.ao.nn.quantized.Embedding.from_float(small.get_input_embeddings()))
        RewardModel(small, tiny_tokenizer()).check(["you yes water"])


def test_quantised_answers_are_refused_by_name():
    model = quantized(tiny_model("llama"), nn.Linear)
    steps = {"good_token": "good", "bad_token": "not", "step_token": "so"}
    with pytest.raises(RewardModelError, match="plain linear output embedding"):
        ProcessRewardModel(model, tiny_tokenizer(), **steps)(["how"], ["so yes"])
