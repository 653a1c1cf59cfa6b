"""
Run one step against the loopback Hub in a process of its own: huggingface_hub reads its settings once, at import.

    python -m tests.hub.client STEP JSON-ARGUMENTS      prints its result as the last line, JSON
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch


def push(policy: str, repo: str, **options: Any) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    import hf_itp

    calibration = options.pop("calibration", None)
    if calibration is not None:
        options["calibrator"] = hf_itp.RewardCalibrator.from_pretrained(calibration)
    commit = hf_itp.push_to_hub(AutoModelForCausalLM.from_pretrained(policy), repo, **options)
    return {"commit": commit.oid, "pull_request": commit.pr_url}


def push_reward_model(folder: str, repo: str) -> dict[str, Any]:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo, exist_ok=True)
    return {"commit": HfApi().upload_folder(repo_id=repo, folder_path=folder).oid}


def decode(policy: str, how: str, **options: Any) -> dict[str, Any]:
    """Return the tokens of one response, in one of the ways to use a checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    inputs = tokenizer("how do you bake bread", return_tensors="pt")
    call = {"prompts": ["how do you bake bread"], "seed": 5, "max_new_tokens": 6, **options}
    if how == "remote code":
        model = AutoModelForCausalLM.from_pretrained(policy, trust_remote_code=True)
    else:
        import hf_itp  # noqa: F401

        model = AutoModelForCausalLM.from_pretrained(policy)
        call = {"strategy": "auto", **call}
    return {"ids": model.generate(**inputs, **call)[0].tolist()}


def plain(policy: str) -> dict[str, Any]:
    """Use the checkpoint without hf_itp in the process: an ordinary one, for which `strategy=` is an error."""
    sys.modules["hf_itp"] = None  # type: ignore[assignment]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    inputs = tokenizer("how do you bake bread", return_tensors="pt")
    found: dict[str, Any] = {"length": model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1]}
    try:
        model.generate(**inputs, strategy="auto")
    except ValueError as error:
        found["error"] = str(error)
    return found


def train(policy: str, output: str, repo: str, **options: Any) -> dict[str, Any]:
    """Run a training that pushes while it continues."""
    import warnings

    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    import hf_itp
    from tests.tiny import PromptBoundReward, tiny_tokenizer

    final = options.pop("final", False)
    args = hf_itp.CTRLArguments(
        output, num_reference=32, transform="exponential", t=5.0, max_completion_length=4, max_steps=2, save_steps=1,
        per_device_train_batch_size=4, num_generations=4, report_to="none", disable_tqdm=True, use_cpu=True,
        hub_model_id=repo, **options,
    )  # fmt: skip
    trainer = hf_itp.CTRLTrainer(
        AutoModelForCausalLM.from_pretrained(policy), PromptBoundReward(), args,
        train_dataset=Dataset.from_dict({"prompt": ["how do you bake bread", "what is salt for"]}),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.train()
    if final:
        trainer.push_to_hub()
    return {}


def main() -> None:
    torch.set_num_threads(1)
    step, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(globals()[step](**arguments)))


if __name__ == "__main__":
    main()
