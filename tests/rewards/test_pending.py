"""Test asynchronous reward functions: awaited, several at once, wherever they are called from."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch

from hf_itp.calibration import CalibratedReward, RewardCalibrator
from hf_itp.errors import RewardError
from hf_itp.rewards import CallableReward, RewardEnsemble, as_reward_function

PROMPTS, RESPONSES = ["how", "how"], ["so", "yes"]


async def lengths(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completion)) for completion in completions]


class Judge:
    async def __call__(self, prompts, completions, **kwargs):
        return await lengths(prompts, completions)

    async def judged(self, prompts, completions, **kwargs):
        return await lengths(prompts, completions)


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        functools.partial(lengths, level=3),
        Judge(),
        Judge().judged,
        lambda prompts, completions, **kwargs: lengths(prompts, completions),
    ],
    ids=["function", "partial", "object", "method", "returns an awaitable"],
)
def test_asynchronous_functions_are_awaited(function):
    assert as_reward_function(function)(PROMPTS, RESPONSES).tolist() == [2.0, 3.0]
    completions = CallableReward(function)(PROMPTS, completions=RESPONSES)
    assert completions == [2.0, 3.0]


def meeting(number):
    """Return functions that each wait until all others run: an error for any that runs by itself."""
    arrived = []

    def member(value):
        async def function(prompts, completions, **kwargs):
            arrived.append(value)
            for _ in range(2000):
                if len(arrived) == number:
                    return [value] * len(completions)
                await asyncio.sleep(0.005)
            raise TimeoutError("was alone")

        return function

    return [member(float(value)) for value in range(number)]


def test_members_of_an_ensemble_run_at_once():
    assert as_reward_function(meeting(5))(PROMPTS, RESPONSES).tolist() == [2.0, 2.0]


def test_members_of_nested_ensembles_run_at_once():
    one, two, three = meeting(3)
    calibrator = RewardCalibrator(["how"], torch.tensor([[0.5, 1.5, 2.5, 3.5]]))
    nested = RewardEnsemble([CalibratedReward(three, calibrator), CallableReward(two)])
    # 2 beats half of the references
    assert RewardEnsemble([nested, CallableReward(one)])(PROMPTS, RESPONSES).tolist() == [0.375, 0.375]


def test_called_inside_a_running_loop_the_loop_is_left_alone():
    async def notebook():
        before = asyncio.get_running_loop()
        rewards = as_reward_function(lengths)(PROMPTS, RESPONSES)
        assert asyncio.get_running_loop() is before
        await asyncio.sleep(0)
        return rewards

    assert asyncio.run(notebook()).tolist() == [2.0, 3.0]


def test_loop_of_the_caller_stays_set():
    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:
        as_reward_function(lengths)(PROMPTS, RESPONSES)
        assert asyncio.get_event_loop_policy().get_event_loop() is mine and not mine.is_closed()
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_one_loop_serves_every_call_so_that_connections_stay_open():
    """Clients of servers belong to the loop they were first used in."""
    loops = []

    async def remembering(prompts, completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    reward = CallableReward(remembering)
    reward(PROMPTS, RESPONSES)
    with ThreadPoolExecutor(3) as executor:
        list(executor.map(lambda _: reward(PROMPTS, RESPONSES), range(3)))
    assert len(loops) == 4 and len(set(map(id, loops))) == 1 and not loops[0].is_closed()


def test_reward_that_calls_an_asynchronous_one_does_not_wait_for_itself():
    inner = as_reward_function([lengths, lengths])

    async def outer(prompts, completions, **kwargs):
        return inner(prompts, completions).tolist()

    assert as_reward_function(outer)(PROMPTS, RESPONSES).tolist() == [2.0, 3.0]


def test_variables_of_the_callers_context_are_seen():
    variable = ContextVar("variable", default=0.0)

    async def reading(prompts, completions, **kwargs):
        return [variable.get()] * len(completions)

    variable.set(5.0)
    assert as_reward_function(reading)(PROMPTS, RESPONSES).tolist() == [5.0, 5.0]


async def broken(prompts, completions, **kwargs):
    raise ConnectionError("busy")


def test_error_of_the_first_that_fails_is_raised_once_all_have_ended():
    ended = threading.Event()

    async def slow(prompts, completions, **kwargs):
        await asyncio.sleep(0.05)
        ended.set()
        return [0.0] * len(completions)

    with pytest.raises(ConnectionError, match="busy"):
        as_reward_function([broken, slow])(PROMPTS, RESPONSES)
    assert ended.is_set()


@pytest.mark.parametrize("order", [1, -1])
def test_synchronous_member_that_fails_leaves_nothing_unawaited(order):
    """Python warns of coroutines that nobody awaits, and warnings are errors here."""

    def failing(prompts, completions, **kwargs):
        raise ZeroDivisionError("first")

    with pytest.raises(ZeroDivisionError):
        as_reward_function([lengths, [lengths, lengths], failing][::order])(PROMPTS, RESPONSES)


def test_rewards_of_asynchronous_functions_are_checked():
    async def too_few(prompts, completions, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match=r"`too_few` must return one reward per response \(2\), got 1"):
        CallableReward(too_few)(PROMPTS, RESPONSES)


def _in_a_fork(queue):
    queue.put(as_reward_function(lengths)(PROMPTS, RESPONSES).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_process_starts_a_loop_of_its_own():
    as_reward_function(lengths)(PROMPTS, RESPONSES)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_a_fork, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=60) == [2.0, 3.0]
    finally:
        process.join(timeout=60)
