"""Test that two processes give the results of one, and that a failure of one ends both."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hf_itp import ItpError, RewardModel
from hf_itp.distributed.processes import Processes
from hf_itp.distributed.sharding import Sharding
from hf_itp.errors import ItpWarning
from hf_itp.sampling.call import DecodingCall
from tests.distributed.cases import ABSTAINED, CASES, Abstains, assert_same, generated, model_for, plain
from tests.distributed.launching import accelerate_launch
from tests.rewards.classifiers import tiny_classifier
from tests.tiny import tiny_model, tiny_tokenizer

SHARDS = ("candidates", "prompts")
# One launch serves all its tests, which must run on one worker, or each would make its own.
launched = [pytest.mark.slow, pytest.mark.xdist_group("two_processes")]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run = accelerate_launch("-m", "tests.distributed.every_case", folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return [torch.load(folder / f"process{rank}.pt", weights_only=True) for rank in range(2)]


class TestTwoProcesses:
    pytestmark = launched

    @pytest.mark.parametrize("shard", SHARDS)
    @pytest.mark.parametrize("case", CASES)
    def test_give_the_candidates_rewards_and_winners_of_one(self, case, shard, processes):
        alone = plain(generated(model_for(case), case, shard=None))
        for process in processes:
            assert_same(process["splits"][case, shard], alone)

    @pytest.mark.parametrize(
        ("case", "shard", "parts"),
        [
            ("33 candidates", "candidates", (17, 16)),
            ("33 candidates", "prompts", (0, 33)),
            ("three prompts", "candidates", (8, 7)),
            ("three prompts", "prompts", (5, 10)),
            ("one candidate", "candidates", (1, 0)),
            # Its rows depend on one another, so its candidates are split whatever was asked for.
            ("processor per place", "prompts", (9, 6)),
        ],
    )
    def test_each_draw_their_part_and_no_more(self, case, shard, parts, processes):
        assert tuple(process["splits"][case, shard, "scored here"] for process in processes) == parts

    @pytest.mark.parametrize("shard", SHARDS)
    def test_give_the_rewards_of_a_reward_model_up_to_rounding(self, shard, processes):
        reward = RewardModel(tiny_classifier("llama"), tiny_tokenizer())
        alone = plain(generated(tiny_model("llama"), "three prompts", None, reward, beta=0.5))
        for process in processes:
            split = process["reward models"][shard]
            assert_same(split["candidates"], alone["candidates"])
            assert_same(split["sequences"], alone["sequences"])
            # Other batches round differently.
            torch.testing.assert_close(split["candidate_rewards"], alone["candidate_rewards"], rtol=0, atol=1e-4)
        assert_same(processes[0]["reward models"], processes[1]["reward models"])

    @pytest.mark.parametrize("shard", SHARDS)
    @pytest.mark.parametrize("case", ABSTAINED)
    def test_agree_on_what_has_no_reward_and_on_what_was_logged(self, case, shard, processes):
        alone = plain(generated(tiny_model("llama"), case, None, Abstains()))
        assert int(alone["no_reward"].sum()) > 0
        for process in processes:
            assert_same(process["abstaining"][case, shard], alone)

    def test_generate_with_what_accelerate_wrapped_once_it_is_unwrapped(self, processes):
        alone = plain(generated(tiny_model("llama"), "33 candidates", None))
        for process in processes:
            assert process["unwrapped"]["type"] == "DistributedDataParallel"
            assert_same(process["unwrapped"]["output"], alone)

    @pytest.mark.uses_global_rng
    def test_without_a_seed_follow_the_random_numbers_of_process_0(self, processes):
        torch.manual_seed(100)
        alone = plain(generated(tiny_model("llama"), "three prompts", None, seed=None))
        following = torch.rand(())
        for process in processes:
            assert_same(process["without a seed"]["output"], alone)
        assert processes[0]["without a seed"]["next random number"] == following

    @pytest.mark.parametrize("shard", SHARDS)
    @pytest.mark.parametrize(
        "case", ["33 candidates", "one candidate", "three prompts", "batches of three", "fresh proposals"]
    )
    def test_make_equally_many_forward_passes_of_sharded_weights(self, case, shard, processes):
        """FSDP2 gathers weights in each pass: after one pass less the other process would wait for ever."""
        alone = plain(generated(tiny_model("llama"), case, shard=None))
        for process in processes:
            assert_same(process["sharded weights"][case, shard], alone)

    @pytest.mark.parametrize(("failure", "failing"), [("reward", 1), ("reward of process 0", 0)])
    def test_end_with_the_error_of_the_one_that_failed(self, failure, failing, processes):
        own, told = processes[failing]["failures"][failure], processes[1 - failing]["failures"][failure]
        assert own["type"] == "ScoringError" and "Return a finite float for every response" in own["message"]
        assert told["type"] == "ProcessError" and own["message"] in told["message"]
        assert own["drawn"] == [17 if failing == 0 else 16], "its own part of the 33"
        assert f"Process {failing} of 2 failed" in told["message"] and "Fix what failed there" in told["message"]

    def test_end_with_the_error_of_another_once_their_own_part_is_drawn(self, processes):
        own, told = (processes[rank]["failures"]["criterion"] for rank in (1, 0))
        assert own["type"] == "ZeroDivisionError"
        assert told["type"] == "ProcessError" and "ZeroDivisionError: in a criterion" in told["message"]
        drawn = [process["failures"]["tokens drawn beside the criterion's error"] for process in processes]
        assert drawn == [10, 3]

    @pytest.mark.parametrize(("failure", "name"), [("other prompts", "input_ids"), ("other count", "num_candidates")])
    def test_refuse_to_share_two_different_calls(self, failure, name, processes):
        for process in processes:
            error = process["failures"][failure]
            assert error["type"] == "ArgumentError" and f"`{name}` must be the same" in error["message"]
            assert "Give every process the whole batch" in error["message"]

    def test_work_together_again_after_a_failure(self, processes):
        alone = plain(generated(tiny_model("llama"), "33 candidates", shard=None))
        for process in processes:
            assert_same(process["failures"]["after all that"], alone)


@pytest.mark.parametrize("shard", SHARDS)
def test_shard_in_one_process_changes_nothing_and_says_so(shard):
    model = tiny_model("llama")
    with pytest.warns(ItpWarning, match=r"there is one process.*accelerate launch --multi_gpu --num_processes 2"):
        split = plain(generated(model, "three prompts", shard))
    assert_same(split, plain(generated(model, "three prompts", None)))


def test_launch_that_nothing_joined_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ItpError, match=r"Create accelerate\.Accelerator\(\) before the call"):
        generated(tiny_model("llama"), "three prompts", "candidates")


@pytest.mark.parametrize("shard", ["rows", 2, ""])
def test_unknown_way_to_split_is_an_error_that_lists_the_known(shard):
    with pytest.raises(ValueError, match="'candidates', 'prompts', got") as raised:
        generated(tiny_model("llama"), "three prompts", shard)
    assert isinstance(raised.value, ItpError)


def split_over(shard, num_prompts, size):
    """Return a split over any number of processes, without starting them."""
    processes = Processes()
    processes.size = size
    ids = torch.zeros(num_prompts, 1, dtype=torch.long)
    return Sharding(processes, shard, DecodingCall.of(tiny_model("llama"), ids, [], [], None))


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("num_prompts", "num_candidates"), [(1, 33), (8, 33), (3, 5), (1, 1), (7, 2)])
def test_candidates_are_spread_evenly(size, num_prompts, num_candidates):
    split = split_over("candidates", num_prompts, size)
    parts = Counter(split.owner(row, index) for row in range(num_prompts) for index in range(num_candidates))
    loads = [parts[rank] for rank in range(size)]
    assert sum(loads) == num_prompts * num_candidates and set(parts) <= set(range(size))
    # Parts differ by at most one for every prompt; remainders of successive prompts go to successive processes.
    assert max(loads) - min(loads) <= min(num_candidates, size)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("num_prompts", [1, 3, 8, 33])
def test_prompts_are_spread_evenly_and_in_one_piece_each(size, num_prompts):
    split = split_over("prompts", num_prompts, size)
    owners = [split.owner(row, index) for row in range(num_prompts) for index in range(2)]
    assert owners == sorted(owners) and set(owners) <= set(range(size))
    loads = [owners.count(rank) // 2 for rank in range(size)]
    assert sum(loads) == num_prompts and max(loads) - min(loads) <= 1
