"""
Train a policy for best-of-4, push it to a Hub, pull it in a fresh process with an empty cache, and decode it as it
recommends. All of it on this machine.

    python examples/hub_demo.py        # or: make demo-hub

The Hub is the loopback server of the tests, real HTTP on 127.0.0.1. Policy and reward model are tiny and random, so
the responses make no sense.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

POLICY, REWARD_MODEL = "tester/ctrl-policy", "tester/reward-model"
QUESTION = "how do you bake bread"
PROMPTS = [QUESTION, "what is salt for", "do you use milk in bread"]


def author(folder: Path) -> None:
    """Make a policy and a reward model, train the policy with the reward model, and push both."""
    from datasets import Dataset
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM

    import hf_itp
    from tests.rewards.classifiers import saved, tiny_classifier
    from tests.tiny import saved_policy, tiny_tokenizer

    tokenizer, path = tiny_tokenizer(), saved_policy(folder)
    HfApi().create_repo(REWARD_MODEL)
    reward_folder = saved(folder / "reward", tiny_classifier("llama"), tokenizer)
    HfApi().upload_folder(repo_id=REWARD_MODEL, folder_path=reward_folder)
    print(f"  pushed the reward model to {REWARD_MODEL}")

    args = hf_itp.QuantileRegressionArguments(
        str(folder / "trained"), strategy="best_of_n", num_candidates=4, target_kl=0.5, num_reference=64, max_steps=40,
        max_completion_length=8, per_device_train_batch_size=16, learning_rate=1e-3, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=20, hub_model_id=POLICY,
    )  # fmt: skip
    trainer = hf_itp.QuantileRegressionTrainer(
        AutoModelForCausalLM.from_pretrained(path),
        hf_itp.RewardModel.from_pretrained(REWARD_MODEL),
        args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    trainer.train()
    print(f"  trained: {trainer.objective.transform}, aimed at {trainer.objective.expected().kl:.2f} nats")
    trainer.push_to_hub()
    print(f"  pushed the policy to {POLICY}")
    inputs = tokenizer(QUESTION, return_tensors="pt")
    decoded = trainer.model.eval().generate(
        **inputs, strategy="best_of_n", num_candidates=4, reward_model=REWARD_MODEL, prompts=[QUESTION],
        tokenizer=tokenizer, seed=0, max_new_tokens=8,
    )  # fmt: skip
    print(json.dumps(decoded[0].tolist()))


def reader() -> None:
    """Pull the policy and decode as it recommends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hf_itp

    policy, tokenizer = AutoModelForCausalLM.from_pretrained(POLICY), AutoTokenizer.from_pretrained(POLICY)
    print(f"  it recommends {policy.generation_config.hf_itp}")
    calibrator = hf_itp.RewardCalibrator.from_pretrained(POLICY)
    print(f"  it carries {calibrator.num_reference} reference rewards for {len(calibrator.fingerprints)} prompts")
    inputs = tokenizer(QUESTION, return_tensors="pt")
    decoded = policy.generate(**inputs, strategy="auto", prompts=[QUESTION], seed=0, max_new_tokens=8)
    print(f"  it answers: {tokenizer.decode(decoded[0], skip_special_tokens=True)}")
    print(json.dumps(decoded[0].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["author", "reader"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "author":
        return author(options.folder)
    if options.role == "reader":
        return reader()

    from tests.hub.server import LoopbackHub

    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as temporary:
        decoded = {}
        for role in ("author", "reader"):
            print(f"The {role}, in a process and with a cache of its own:", flush=True)
            command = [sys.executable, __file__, "--role", role, "--folder", f"{temporary}/{role}"]
            quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
            environment = os.environ | hub.environment(Path(temporary) / f"cache of the {role}") | quiet
            process = subprocess.run(command, env=environment, text=True, capture_output=True, cwd=ROOT)
            if process.returncode != 0:
                sys.exit(process.stderr)
            *said, tokens = [line for line in process.stdout.splitlines() if not line.startswith("{")]
            print("\n".join(said))
            decoded[role] = tokens
        print(f"The repository {POLICY} holds:")
        for path, content in sorted(hub.files(POLICY).items()):
            print(f"  {path:<36}{len(content):>10,} bytes")
        same = decoded["author"] == decoded["reader"]
        print(f"The same seed gave {'the same' if same else 'OTHER'} tokens before the push and after the pull.")
        sys.exit(not same)


if __name__ == "__main__":
    main()
