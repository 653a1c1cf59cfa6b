"""What goes wrong on the way: retried, or a clear error; never half a repository, never a broken cache."""

from __future__ import annotations

import pytest

POLICY = "tester/policy"

pytestmark = pytest.mark.slow


def start_push(machine, source, **options):
    return machine("pusher").start(
        "push", policy=source[0], repo=POLICY, calibration=source[1], strategy="best_of_n", **options
    )


@pytest.mark.parametrize("path", ["/lfs/", "/preupload/", "info/lfs"])
def test_server_error_while_uploading_is_retried(hub, machine, policy_and_calibration, path):
    hub.faults.add("PUT" if path == "/lfs/" else "POST", path, status=503)
    process = start_push(machine, policy_and_calibration)
    whole = "model.safetensors" in hub.files(POLICY)
    # Retried where huggingface_hub does; else an error and nothing pushed.
    assert whole == (process.returncode == 0)
    if path == "/lfs/":
        assert whole, process.stderr


@pytest.mark.parametrize(("status", "said"), [(500, "500"), (401, "401"), (403, "403"), (409, "409")])
def test_commit_that_fails_leaves_nothing_behind(hub, machine, policy_and_calibration, status, said):
    hub.faults.add("POST", "/commit/", status=status, times=20)
    process = start_push(machine, policy_and_calibration)
    assert process.returncode != 0 and said in process.stderr
    assert list(hub.files(POLICY)) == [".gitattributes"]
    hub.faults.clear()
    assert start_push(machine, policy_and_calibration).returncode == 0
    assert "model.safetensors" in hub.files(POLICY)


@pytest.mark.parametrize("what", [{"truncated": True}, {"status": 503}, {"seconds": 2.0}])
def test_download_that_breaks_off_leaves_a_sound_cache(hub, machine, policy_and_calibration, with_reward_model, what):
    assert start_push(machine, policy_and_calibration, reward_model=with_reward_model).returncode == 0
    whole = machine("sound").run("decode", policy=POLICY, how="hf_itp")["ids"]
    hub.faults.add("GET", rf"{POLICY}/resolve/.*/model\.safetensors", **what)
    first = machine("unlucky").start("decode", policy=POLICY, how="hf_itp")
    if first.returncode != 0:
        assert "Error" in first.stderr
    hub.faults.clear()
    assert machine("unlucky").run("decode", policy=POLICY, how="hf_itp")["ids"] == whole


def test_missing_gated_and_changed_reward_models_say_so(hub, machine, policy_and_calibration, with_reward_model):
    assert start_push(machine, policy_and_calibration, reward_model=with_reward_model).returncode == 0
    gated = hub.repositories[with_reward_model]
    gated.gated = True
    process = machine("no access", HF_TOKEN="").start("decode", policy=POLICY, how="hf_itp")
    assert process.returncode != 0 and with_reward_model in process.stderr
    gated.gated = False
    del hub.repositories[with_reward_model]
    process = machine("too late").start("decode", policy=POLICY, how="hf_itp")
    assert process.returncode != 0 and with_reward_model in process.stderr and "LoadError" in process.stderr


def test_missing_calibration_is_an_error_that_names_it(hub, machine, policy_and_calibration):
    process = machine("pusher").start("push", policy=policy_and_calibration[0], repo=POLICY)
    assert process.returncode == 0, process.stderr
    process = machine("one").start("calibration", repo=POLICY)
    assert "LoadError" in process.stderr and "calibration.safetensors" in process.stderr
    process = machine("one").start("calibration", repo="tester/nothing")
    assert "LoadError" in process.stderr and "Check the id" in process.stderr
