"""Run the commands of `docs/distributed.md` as they are written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_itp import RewardModel
from tests.distributed.launching import ROOT, free_port
from tests.rewards.classifiers import saved, tiny_classifier
from tests.tiny import saved_policy, tiny_tokenizer

PAGE = (ROOT / "docs" / "distributed.md").read_text()
CHAT = [{"role": "user", "content": "how do i bake bread"}]
# Variables that the script on the page assumes, and the output that is checked.
BEFORE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
import hf_itp

policy, tokenizer = AutoModelForCausalLM.from_pretrained({policy!r}), AutoTokenizer.from_pretrained({policy!r})
policy.generation_config.max_new_tokens = 8
reward_model, chats = {reward!r}, [{chat!r}]
inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
AFTER = """
# Print in one write, since two processes share the stream.
line = f"process {accelerator.process_index} of {accelerator.num_processes} {out[0].tolist()}"
print(line + "\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_command_for_cpus_starts_two_processes_that_share_the_call(tmp_path):
    policy = str(saved_policy(tmp_path))
    reward = saved(tmp_path / "reward", tiny_classifier("llama"), tiny_tokenizer())
    [script] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    before = BEFORE.format(policy=policy, reward=reward, chat=CHAT)
    (tmp_path / "script.py").write_text(before + script + AFTER)
    [command] = re.findall(r"```text\n(ACCELERATE_USE_CPU.*?)\n```", PAGE)
    # A port of its own; the variable counts also where the machine has an accelerator.
    command = command.replace(" --multi_gpu ", f" --multi_gpu --main_process_port {free_port()} ")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": programs,
        "HF_HUB_OFFLINE": "1",
    }
    ended = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = sorted(line for line in ended.stdout.splitlines() if line.startswith("process "))
    assert [line.split(" [")[0] for line in lines] == ["process 0 of 2", "process 1 of 2"]

    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    inputs = tokenizer.apply_chat_template([CHAT], add_generation_prompt=True, return_dict=True, return_tensors="pt")
    alone = AutoModelForCausalLM.from_pretrained(policy).generate(
        **inputs, strategy="pessimism", beta=0.1, reward_model=RewardModel.from_pretrained(reward), prompts=[CHAT],
        num_candidates=64, seed=0, max_new_tokens=8,
    )  # fmt: skip
    assert {line.split("of 2 ")[1] for line in lines} == {str(alone[0].tolist())}
