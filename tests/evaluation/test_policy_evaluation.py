"""Test the evaluation of a trained policy against laws that are enumerated, and against loops over all subsets."""

from __future__ import annotations

import itertools
import json
import math
import zlib

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_itp import RewardCalibrator
from hf_itp.errors import ArgumentError, RewardError
from hf_itp.evaluation import evaluate_policy
from hf_itp.strategies import get_strategy
from tests.tiny import EOS, tiny_model, tiny_tokenizer
from tests.training.finite import MAX_NEW_TOKENS, PROMPT, training_world
from tests.worlds.laws import push_forward, response_law

PROMPTS = [PROMPT, "user", "user <unk>"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return training_world(tmp_path_factory.mktemp("world"))


class HashedReward:
    """A reward of prompt and token ids that tells nearly all responses apart; ties are those of ten values."""

    __name__ = "hashed"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, **kwargs):
        ids = [tuple(map(int, one)) for one in completion_ids]
        self.calls.append((list(prompts), ids))
        return [self.reward(prompt, one) for prompt, one in zip(prompts, ids, strict=True)]

    @staticmethod
    def reward(prompt, ids):
        return zlib.crc32(f"{prompt} {list(map(int, ids))}".encode()) % 10 / 8


def moved(world):
    """Return the world's policy as a training could leave it: its last layer turned towards other tokens."""
    model = world.policy().eval()
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.add_(1.0 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * weight.std())
    return model


def evaluated(world, policy, reference, reward, prompts=PROMPTS, **options):
    settings = {"num_candidates": 2, "num_responses": 6, "tokenizer": world.tokenizer, "progress": False}
    if "calibrator" not in options:
        settings["max_new_tokens"] = MAX_NEW_TOKENS
    return evaluate_policy(policy, reference, reward, prompts, **(settings | options))


def beats(one, other):
    return (one > other) + (one == other) / 2


def by_enumeration(ours, theirs, n, pick):
    """Return the mean over all n-subsets of both samples of the chance that what is picked of ours wins."""
    pairs = list(itertools.product(itertools.combinations(ours, n), itertools.combinations(theirs, n)))
    return sum(beats(pick(mine), pick(other)) for mine, other in pairs) / len(pairs)


def pools_of(folder):
    """Return the rows of both pools, as they were written."""
    return [
        [json.loads(line) for line in (folder / part / "reference_pool.jsonl").read_text().splitlines()]
        for part in ("policy", "reference")
    ]


@pytest.mark.parametrize(("strategy", "pick"), [("best_of_n", max), ("worst_of_n", min)])
def test_each_prompts_numbers_are_those_of_all_subsets_and_of_the_enumerated_laws(world, tmp_path, strategy, pick):
    policy, reference, reward = moved(world), world.policy(), HashedReward()
    found = evaluated(world, policy, reference, reward, strategy=strategy, output_dir=tmp_path, seed=3)
    pools = pools_of(tmp_path)
    assert found.prompts == PROMPTS and found.settings["strategy"]["name"] == strategy and not found.notes
    for place, (mine, other) in enumerate(zip(*pools, strict=True)):
        prompt, ours, theirs = mine["prompt"], mine["rewards"], other["rewards"]
        assert ours == [reward.reward(prompt, ids) for ids in mine["response_ids"]] and len(ours) == 6
        ids = torch.tensor([world.tokenizer(prompt)["input_ids"]])
        laws = [response_law(model.eval(), ids, MAX_NEW_TOKENS, EOS) for model in (policy, reference)]
        ratios = [math.log(laws[0][tuple(ids)] / laws[1][tuple(ids)]) for ids in mine["response_ids"]]
        against_plain = [beats(pick(pool), z) for pool in itertools.combinations(ours, 2) for z in theirs]
        expected = {
            "win_rate": by_enumeration(ours, theirs, 1, max),
            f"{strategy}_win_rate": by_enumeration(ours, theirs, 2, pick),
            f"{strategy}_win_rate_against_plain": sum(against_plain) / len(against_plain),
            "kl": sum(ratios) / len(ratios),
            "reward": sum(ours) / 6,
            "reference_reward": sum(theirs) / 6,
        }
        assert set(found.per_prompt) == set(expected)
        for name, value in expected.items():
            assert found.per_prompt[name][place] == pytest.approx(value, abs=2e-5), name
    for name, estimate in found.estimates.items():
        assert estimate.mean == pytest.approx(sum(found.per_prompt[name]) / 3, abs=1e-12)
        assert estimate.num_prompts == 3


def test_law_without_a_closed_form_is_that_of_the_pool(world, tmp_path):
    """With as many responses as candidates there is one subset, the pool."""
    found = evaluated(
        world, moved(world), world.policy(), HashedReward(), strategy="pessimism", num_candidates=6,
        output_dir=tmp_path,
    )  # fmt: skip
    rule = get_strategy("pessimism")
    for place, (mine, other) in enumerate(zip(*pools_of(tmp_path), strict=True)):
        ours, theirs = (torch.tensor(row["rewards"], dtype=torch.float64) for row in (mine, other))
        laws = [rule.probabilities(rewards) for rewards in (ours, theirs)]
        chances = itertools.product(zip(ours, laws[0], strict=True), zip(theirs, laws[1], strict=True))
        won = sum(float(p * q) * beats(float(x), float(y)) for (x, p), (y, q) in chances)
        assert found.per_prompt["pessimism_win_rate"][place] == pytest.approx(won, abs=1e-9)


def test_estimates_reach_the_enumerated_truth(world):
    """
    2,000 responses of each. By Hoeffding's bound, with both samples cut into 2,000 / n independent groups, an estimate
    is off by more than sqrt(ln(2e7) n / 4,000) with chance below 1e-7; the mean log-ratio, within the range of the
    enumerated ones, by more than that part of the range.
    """
    policy, reference = moved(world), world.policy()
    truth = world.learned(policy)
    reach = {n: math.sqrt(math.log(2e7) * n / 4000) for n in (1, 2, 3)}
    run = {"prompts": [PROMPT], "num_responses": 2000}
    found = evaluated(world, policy, reference, world.reward(), num_candidates=3, **run)
    estimates = found.estimates
    assert abs(truth.win_rate - 0.5) > 2 * reach[1], "a policy that has not moved would show nothing"
    assert abs(estimates["win_rate"].mean - truth.win_rate) < reach[1]
    assert abs(estimates["best_of_n_win_rate"].mean - truth.best_of_n_win_rate(3)) < reach[3]
    ratios = (truth.policy / truth.reference).log()
    assert abs(estimates["kl"].mean - truth.kl) < float(ratios.max() - ratios.min()) * reach[1]
    # One prompt tells nothing of others.
    results = found.to_dict()["results"]["win_rate"]
    assert results["low"] is None and results["standard_error"] is None

    rule, rewards = (
        get_strategy("pessimism", beta=0.3),
        dict(zip(world.responses, world.rewards.tolist(), strict=True)),
    )
    returned = [
        push_forward(dict(zip(world.responses, law.tolist(), strict=True)), rule.probabilities, rewards, 2)
        for law in (truth.policy, truth.reference)
    ]
    mine, theirs = (torch.tensor([law[one] for one in world.responses], dtype=torch.float64) for law in returned)
    won = (world.rewards[:, None] > world.rewards).double() + (world.rewards[:, None] == world.rewards) / 2
    found = evaluated(world, policy, reference, world.reward(), strategy=rule, num_candidates=2, **run)
    for name, other in (("", theirs), ("_against_plain", truth.reference)):
        assert abs(found.estimates[f"pessimism_win_rate{name}"].mean - float(mine @ won @ other)) < reach[2]


def test_policy_that_has_not_moved_is_compared_by_responses_of_its_own(world, tmp_path):
    found = evaluated(world, world.policy(), world.policy(), HashedReward(), output_dir=tmp_path)
    ours, theirs = pools_of(tmp_path)
    assert found.per_prompt["kl"] == [0.0] * 3
    assert all(mine["response_ids"] != other["response_ids"] for mine, other in zip(ours, theirs, strict=True))


def test_adapters_are_compared_with_the_model_without_them(world, tmp_path):
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        adapted = get_peft_model(world.policy(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    by_switching = evaluated(world, adapted.eval(), None, HashedReward(), output_dir=tmp_path / "one")
    by_loading = evaluated(world, adapted, world.policy(), HashedReward(), output_dir=tmp_path / "two")
    for name, values in by_switching.per_prompt.items():
        assert values == pytest.approx(by_loading.per_prompt[name], abs=1e-5), name
    assert max(map(abs, by_switching.per_prompt["kl"])) > 1e-3
    assert by_switching.settings["reference"].endswith("without adapters")
    with pytest.raises(ArgumentError, match="`reference` must be given"):
        evaluated(world, world.policy(), None, HashedReward())


def test_calibrator_holds_the_reference_policys_rewards_and_draw(world):
    reference, reward = world.policy(), HashedReward()
    drawn = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0.8}
    calibrator = RewardCalibrator.fit(
        reference, reward, PROMPTS, num_reference=9, tokenizer=world.tokenizer, progress=False, **drawn
    )
    policy = moved(world)
    found = evaluated(world, policy, reference, reward, calibrator=calibrator)
    assert found.settings["num_reference"] == 9 and found.settings["sampling"]["temperature"] == 0.8
    by_hand = [
        sum(beats(float(y), float(z)) for z in calibrator.references_of([prompt])[0] for y in ours) / 9 / 6
        for prompt, ours in zip(PROMPTS, _rewards_of(policy, world, reward, drawn), strict=True)
    ]
    assert found.per_prompt["win_rate"] == pytest.approx(by_hand, abs=1e-6)
    with pytest.raises(ArgumentError, match="`temperature`"):
        evaluated(world, policy, reference, reward, calibrator=calibrator, temperature=0.5)
    with pytest.raises(ArgumentError, match="belong to this policy"):
        evaluated(world, policy, moved(world), reward, calibrator=calibrator)
    with pytest.raises(ArgumentError, match="among those the calibrator"):
        evaluated(world, policy, reference, reward, prompts=["user user"], calibrator=calibrator)
    with pytest.raises(ArgumentError, match="`num_reference` must be left out"):
        evaluated(world, policy, reference, reward, calibrator=calibrator, num_reference=8)


def _rewards_of(policy, world, reward, drawn):
    """Draw what the evaluation draws of the policy, by the same settings and seed without a calibrator."""
    found = evaluated(world, policy, world.policy(), reward, **drawn)
    calls = reward.calls[-2:] if len(reward.calls) >= 2 else reward.calls
    prompts, drawn_ids = calls[0]
    assert len(prompts) == 18 and found.settings["sampling"]["temperature"] == 0.8
    rewards = [reward.reward(prompt, ids) for prompt, ids in zip(prompts, drawn_ids, strict=True)]
    return [rewards[place : place + 6] for place in range(0, 18, 6)]


def test_evaluation_that_was_interrupted_draws_only_what_is_missing(world, tmp_path):
    policy, reference = moved(world), world.policy()
    whole = evaluated(world, policy, reference, HashedReward(), output_dir=tmp_path / "whole")

    class Stopped(HashedReward):
        def __call__(self, prompts, completions, completion_ids, **kwargs):
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            return super().__call__(prompts, completions, completion_ids, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        evaluated(world, policy, reference, Stopped(), output_dir=tmp_path / "resumed")
    again = HashedReward()
    resumed = evaluated(world, policy, reference, again, output_dir=tmp_path / "resumed")
    assert resumed.to_dict() == whole.to_dict() and len(again.calls) == 1
    with pytest.raises(ArgumentError, match="Choose another folder"):
        evaluated(world, policy, reference, again, output_dir=tmp_path / "resumed", seed=8)


def test_kl_is_that_of_the_law_that_draws_or_is_left_out_with_its_reason(world, tmp_path):
    policy, reference = moved(world), world.policy()
    cold = evaluated(world, policy, reference, HashedReward(), temperature=0.5, output_dir=tmp_path)
    for place, row in enumerate(pools_of(tmp_path)[0]):
        ids = torch.tensor([world.tokenizer(row["prompt"])["input_ids"]])
        laws = [
            response_law(model.eval(), ids, MAX_NEW_TOKENS, EOS, warp=lambda logits: logits / 0.5)
            for model in (policy, reference)
        ]
        ratios = [math.log(laws[0][tuple(ids)] / laws[1][tuple(ids)]) for ids in row["response_ids"]]
        assert cold.per_prompt["kl"][place] == pytest.approx(sum(ratios) / 6, abs=2e-5)
    cut = evaluated(world, policy, reference, HashedReward(), top_k=2)
    assert "kl" not in cut.per_prompt and "drawn with `top_k`" in cut.notes[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_candidates": 7}, "`num_responses` must be an integer of at least 7"),
        ({"num_reference": 1}, "`num_reference` must be an integer of at least 2"),
        ({"strategy": "pesimism"}, "Unknown strategy"),
        ({"prompts": []}, "at least one prompt"),
        ({"reward_kwargs": {"answer": ["1"]}}, "one entry per prompt"),
        ({"max_new_tokens": 999}, "positions"),
        ({"num_beams": 4}, "`num_beams` must be off"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_drawn(world, options, told):
    reward = HashedReward()
    with pytest.raises(ArgumentError, match=told):
        evaluated(world, moved(world), world.policy(), reward, **options)
    assert reward.calls == []


def test_response_without_a_reward_is_named(world):
    class Abstaining(HashedReward):
        def __call__(self, prompts, completions, completion_ids, **kwargs):
            rewards = super().__call__(prompts, completions, completion_ids)
            return [None if prompt == "user" else reward for prompt, reward in zip(prompts, rewards, strict=True)]

    with pytest.raises(RewardError, match=r"got none for response 0 of the policy to prompt 1 \(6 of 18 have none"):
        evaluated(world, moved(world), world.policy(), Abstaining())


def test_strategy_that_draws_beyond_its_pool_gets_whole_runs():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    fresh = get_strategy("pessimism", beta=0.5, pool="fresh", reward_bound=1.0)
    options = {"strategy": fresh, "num_candidates": 2, "tokenizer": tokenizer, "max_new_tokens": 3, "progress": False}
    with pytest.raises(ArgumentError, match="draws 5: draw more"):
        evaluate_policy(model, model, HashedReward(), ["how hot is it"], num_responses=4, **options)
    found = evaluate_policy(model, model, HashedReward(), ["how hot is it"], num_responses=10, **options)
    assert 0 < found.estimates["pessimism_win_rate"].mean < 1
