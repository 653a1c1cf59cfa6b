"""
Make the pools of `examples/data` from their sources, which `examples/data/README.md` names.

Keeps numbers only, one row per prompt: an id, the rewards of its 100 responses, and whether each response is right.

    python examples/make_real_pools.py --source FOLDER

FOLDER holds two files of gzipped JSON lines:

codet_humaneval_164x100.jsonl.gz   `id`; `num_tests`, how many model-written tests the problem has; `passes`, one
                                   string per program with a 1 for each test that passes; `gold`, 1 for each program
                                   that passes the official tests.
game24_gpt4_cot_100x100.jsonl.gz   `id`; `closeness`, exp(-|value - 24| / 4) of each response's expression, 0 for one
                                   that does not parse; `chars`, the length of each response; `gold`, 1 if it is right.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

DATA = Path(__file__).parent / "data"
FEWEST_TESTS = 5
LENGTH_BONUS = 0.002  # per character


def humaneval(problem: dict) -> dict:
    """Return a row whose reward is the share of the model-written tests that a program passes."""
    shares = [round(outcomes.count("1") / problem["num_tests"], 6) for outcomes in problem["passes"]]
    return {"id": problem["id"], "rewards": shares, "gold_rewards": problem["gold"]}


def game24(puzzle: dict) -> dict:
    """Return a row of two rewards: how close the value is to 24, and the same with a slight taste for length."""
    longer = [
        round(close + LENGTH_BONUS * chars, 6)
        for close, chars in zip(puzzle["closeness"], puzzle["chars"], strict=True)
    ]
    return {
        "id": puzzle["id"],
        "rewards.closeness": puzzle["closeness"],
        "rewards.closeness_and_length": longer,
        "gold_rewards": puzzle["gold"],
    }


def read(file: Path) -> list[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(rows: Iterable[dict], file: Path) -> None:
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))  # without the time: the same rows give the same bytes


def main(source: Path, output: Path = DATA) -> None:
    problems = read(source / "codet_humaneval_164x100.jsonl.gz")
    usable = (problem for problem in problems if problem["num_tests"] >= FEWEST_TESTS)
    write(map(humaneval, usable), output / "humaneval_150x100.jsonl.gz")
    write(map(game24, read(source / "game24_gpt4_cot_100x100.jsonl.gz")), output / "game24_100x100.jsonl.gz")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the two files")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    main(arguments.source, arguments.output)
