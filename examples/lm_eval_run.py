"""
The scores of one policy in lm-evaluation-harness, with and without a strategy.

    pip install lm-eval
    python examples/lm_eval_run.py

The harness draws with its own `hf` model. `import hf_itp` is all that is added: `strategy=` and what belongs to it are
generation arguments as any other. Its stop strings end each candidate on its own, so the reward reads what the harness
will score. The embedded reward model was made for helpfulness, not for arithmetic: the table says what it is worth
here.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the Hub

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM

import hf_itp
from hf_itp import embedded

FOLDER = Path(__file__).parent / "lm_eval"
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 0}
WAYS = {
    "greedy": {"do_sample": False},
    "sampled": SAMPLING,
    "best_of_n": {**SAMPLING, "strategy": "best_of_n", "reward_model": "embedded", "seed": 0},
    "pessimism": {**SAMPLING, "strategy": "pessimism", "beta": 0.03, "reward_model": "embedded", "seed": 0},
}


def task() -> dict[str, Any]:
    """The task's configuration, its file named by the whole path."""
    config = yaml.safe_load((FOLDER / "checkable_questions.yaml").read_text(encoding="utf-8"))
    files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"]["data_files"] = {split: str(FOLDER / file) for split, file in files.items()}
    return config


def score(model: HFLM, arguments: dict[str, Any], limit: int | None) -> tuple[float, float]:
    """Accuracy and its standard error, as the harness has them."""
    results = lm_eval.simple_evaluate(model, tasks=[task()], gen_kwargs=arguments, limit=limit, bootstrap_iters=100)
    measured = results["results"]["checkable_questions"]
    return measured["exact_match,first_word"], measured["exact_match_stderr,first_word"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="Only the first questions. Defaults to all 48.")
    parser.add_argument("--num_candidates", type=int, default=8, help="Responses drawn per question (8).")
    parser.add_argument("--batch_size", type=int, default=4, help="Questions per call (4).")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(str(embedded.policy_path()), device="cpu", dtype="float32", batch_size=arguments.batch_size)
    print(f"hf_itp {hf_itp.__version__}, lm-eval {lm_eval.__version__}")
    for name, generation in WAYS.items():
        if "strategy" in generation:
            generation = {**generation, "num_candidates": arguments.num_candidates}
        accuracy, error = score(model, generation, arguments.limit)
        print(
            json.dumps({"way": name, "exact_match": round(accuracy, 4), "stderr": round(float(error), 4)}), flush=True
        )


if __name__ == "__main__":
    main()
