"""
Check what the tests claim of random draws under many seeds: training or, with `--laws`, every law drawn from.

    python -m tests.every_seed --seeds 20 --threads 1
    python -m tests.every_seed --seeds 20 --threads 2 --burn
    python -m tests.every_seed --laws

Run it on any machine; the tests' own seeds are 0 throughout. `--burn` keeps every core busy meanwhile with processes
of its own. Set ATEN_CPU_CAPABILITY=default or avx2 and ONEDNN_MAX_CPU_ISA=SSE41 in the environment for another
processor's arithmetic.

For training it prints how far runs end from what is claimed, and by how many standard deviations the bound clears
their mean: at least five, a normal tail below 3e-7, and no run may be beyond the bound. For laws it prints how many
runs of a test fail: none may, at odds below 1e-6 each. It exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.functional import test_rejection, test_selection, test_win_rates
from tests.functional.kernels import test_categorical, test_random
from tests.sampling import test_exact_law, test_streams
from tests.strategies import test_contract, test_pessimism
from tests.tiny import tiny_tokenizer
from tests.training.experiments import BOUNDS, EXPERIMENTS, OBJECTIVES
from tests.training.finite import training_world
from tests.worlds import test_worlds
from tests.worlds.laws import finite_world

MODULES = (
    test_categorical, test_random, test_rejection, test_selection, test_win_rates, test_exact_law, test_streams,
    test_contract, test_pessimism, test_worlds,
)  # fmt: skip
STANDARD_DEVIATIONS = 5.0


def training_holds(seeds: range, only: str) -> bool:
    world, holds = training_world(Path(tempfile.mkdtemp())), True
    print(f"{'training':36}{'':20}{'seeds':>6}{'mean':>9}{'sd':>9}{'worst':>9}{'bound':>7}{'margin':>8}")
    for solver, name in itertools.product(EXPERIMENTS, OBJECTIVES):
        if only not in f"{solver} {name}":
            continue
        runs = [EXPERIMENTS[solver](world, Path(tempfile.mkdtemp()), name, seed) for seed in seeds]
        for what, bound in BOUNDS.items():
            found = torch.tensor([run[what] for run in runs], dtype=torch.float64)
            mean, deviation, worst = float(found.mean()), float(found.std()), float(found.max())
            margin = (bound - mean) / deviation
            held = worst < bound and margin >= STANDARD_DEVIATIONS
            holds = holds and held
            print(
                f"{f'{solver} {name}':36}{what:20}{len(found):6}{mean:9.4f}{deviation:9.4f}{worst:9.4f}{bound:7.3f}"
                f"{margin:7.1f}s  {'holds' if held else 'DOES NOT HOLD'}",
                flush=True,
            )
    return holds


def laws_hold(seeds: range, only: str) -> bool:
    holds = True
    for module in MODULES:
        for name, test in vars(module).items():
            if not name.startswith("test_") or "seed" not in inspect.signature(test).parameters or only not in name:
                continue
            runs = [(case, seed) for case in cases(test) for seed in seeds]
            failed = [(case, seed) for case, seed in runs if not passes(test, case, seed)]
            holds = holds and not failed
            print(f"{len(runs):5} runs, {len(failed)} failed  {module.__name__}::{name}", *failed, flush=True)
    return holds


def cases(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Return the arguments of every case of a parametrized test."""
    tables = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            tables.append([dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in values])
    for rows in itertools.product(*tables):
        yield {name: value for row in rows for name, value in row.items()}


def passes(test: Callable[..., None], case: dict[str, Any], seed: int) -> bool:
    wanted = inspect.signature(test).parameters
    with pytest.MonkeyPatch.context() as patch:
        fixtures = {
            "small_world": lambda: finite_world(vocabulary=5, max_new_tokens=2),
            "tokenizer": tiny_tokenizer,
            "monkeypatch": lambda: patch,
        }
        given = {name: make() for name, make in fixtures.items() if name in wanted}
        try:
            test(**case, **given, seed=seed)
        except AssertionError:
            return False
    return True


@contextmanager
def burning(processes: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--burn", action="store_true", help="with every core kept busy by others")
    parser.add_argument("--laws", action="store_true", help="the laws instead of training")
    parser.add_argument("--only", default="", help="those whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = range(options.first, options.first + options.seeds)
    with burning(os.cpu_count() or 1 if options.burn else 0):
        return 0 if (laws_hold if options.laws else training_holds)(seeds, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
