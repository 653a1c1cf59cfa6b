"""
Two real pools on which best-of-n is fooled, and what pessimism makes of them. No model, a few seconds.

A pool holds 100 responses per prompt, a reward for each, and whether it is right. N of them are drawn, a strategy
picks one by its reward, and the question is how often the pick is right:

HumanEval    150 problems, programs by CodeGen-16B. Reward: the share of up to 40 model-written tests that pass.
             Right: the official tests pass.
Game of 24   100 puzzles, answers by GPT-4. Reward: how close the value of the expression is to 24, whichever numbers
             it uses, plus 0.002 per character. Right: the value is 24 and each of the four numbers is used once.
             The third panel has the same reward without the taste for length: best-of-n is not fooled there.

No setting is chosen on the prompts it is judged on. Even and odd prompts are the two halves: pessimism's beta, one for
all N, is the best at N = 100 on the other half, and the dashed line is best-of-n at the best N of the other half.
Given the candidates, the chance of each is exact; for N from 2 to 64 pessimism sees --replicates random draws without
replacement. Intervals are 95 % over prompts.

    python examples/real_pools.py --output real_pools.png

With --default it prints one table instead: best-of-n beside pessimism as it is without a `beta`, 0.2 standard
deviations of each pool, on these pools and two more. On HumanEval the reward of the one is the first three tests only;
on Game of 24 that of the other also looks at the numbers used, which makes it right wherever it is highest.

    python examples/real_pools.py --default

`examples/data/README.md` names the source and licence of each pool.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

import hf_itp
from hf_itp.functional import Estimate, best_of_n_subsample_law

DATA = Path(__file__).parent / "data"
# Name: what it is ranked by, its file and its column there.
POOLS = {
    "HumanEval": ("reward: share of model-written tests passed", "humaneval_150x100.jsonl.gz", "rewards"),
    "Game of 24": (
        "our reward: closeness + 0.002 per character",
        "game24_100x100.jsonl.gz",
        "rewards.closeness_and_length",
    ),
    "Game of 24, a reward not hacked": (
        "our reward: closeness to 24 only",
        "game24_100x100.jsonl.gz",
        "rewards.closeness",
    ),
}
# Name: its file and its column there. The last three are rewards that best-of-n may trust more, or wholly.
DEFAULT_POOLS = {
    "HumanEval": ("humaneval_150x100.jsonl.gz", "rewards"),
    "HumanEval, 3 tests": ("humaneval_150x100.jsonl.gz", "rewards.three_tests"),
    "Game of 24": ("game24_100x100.jsonl.gz", "rewards.closeness_and_length"),
    "Game of 24, no taste for length": ("game24_100x100.jsonl.gz", "rewards.closeness"),
    "Game of 24, numbers checked": ("game24_100x100.jsonl.gz", "rewards.closeness_and_numbers"),
}
DEFAULT_SIZES = [4, 16, 100]
SIZES = [1, 2, 4, 8, 16, 32, 64, 100]
BETAS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
BEST, CAREFUL, GREY = "#d55e00", "#0072b2", "#777777"


class Replay(NamedTuple):
    """
    The chance that the response picked is right: `(P,)` has one for each prompt, `(S, P)` one for each size as well.

    Args:
        best_of_n (`torch.Tensor` of shape `(S, P)`): Best-of-n.
        fixed (`dict[float, torch.Tensor]`): Pessimism by its beta, each of shape `(S, P)`.
        pessimism (`torch.Tensor` of shape `(S, P)`): Pessimism, its beta chosen on the other half.
        tuned_best_of_n (`torch.Tensor` of shape `(P,)`): Best-of-n, its N chosen on the other half.
        betas (`list[float]`): What was chosen for the even and for the odd prompts.
        sizes (`list[int]`): The same for N.
    """

    best_of_n: torch.Tensor
    fixed: dict[float, torch.Tensor]
    pessimism: torch.Tensor
    tuned_best_of_n: torch.Tensor
    betas: list[float]
    sizes: list[int]


def load(file: str, column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rewards and the gold rewards, each of shape `(P, 100)`."""
    with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rewards, gold = ([row[name] for row in rows] for name in (column, "gold_rewards"))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(gold, dtype=torch.float64)


def pessimism(
    beta: float | None, rewards: torch.Tensor, gold: torch.Tensor, orders: torch.Tensor, sizes: Sequence[int] = SIZES
) -> torch.Tensor:
    """Return the chance to be right `(S, P)`, the mean over `orders (R, P, 100)`: the first N of each are drawn."""
    strategy = hf_itp.get_strategy("pessimism", beta=beta)
    chances = []
    for size in sizes:
        if size == 1:
            chances.append(gold.mean(dim=-1))  # a single candidate is plain sampling
            continue
        drawn = orders[:1] if size == rewards.shape[-1] else orders[..., :size]  # one order of all 100 is enough
        law = strategy.probabilities(rewards.expand(len(drawn), -1, -1).gather(-1, drawn))
        chances.append((law * gold.expand(len(drawn), -1, -1).gather(-1, drawn)).sum(dim=-1).mean(dim=0))
    return torch.stack(chances)


def random_orders(rewards: torch.Tensor, replicates: int, seed: int) -> torch.Tensor:
    """Return orders `(R, P, 100)` in which the responses of each prompt are drawn."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(replicates, *rewards.shape, generator=generator).argsort(dim=-1)


def best_of_n_chances(rewards: torch.Tensor, gold: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the chance to be right `(S, P)`. There is a formula over all draws of N: it needs no replicates."""
    return torch.stack([(best_of_n_subsample_law(rewards, size) * gold).sum(dim=-1) for size in sizes])


def replay(rewards: torch.Tensor, gold: torch.Tensor, replicates: int, seed: int) -> Replay:
    orders = random_orders(rewards, replicates, seed)
    best_of_n = best_of_n_chances(rewards, gold, SIZES)
    fixed = {beta: pessimism(beta, rewards, gold, orders) for beta in BETAS}

    careful, tuned = torch.empty_like(best_of_n), torch.empty_like(best_of_n[0])
    betas, sizes = [], []
    for half in (0, 1):
        judged, other = slice(half, None, 2), slice(1 - half, None, 2)
        betas.append(max(BETAS, key=lambda beta: fixed[beta][-1, other].mean().item()))
        best = int(best_of_n[:, other].mean(dim=-1).argmax())
        sizes.append(SIZES[best])
        careful[:, judged], tuned[judged] = fixed[betas[-1]][:, judged], best_of_n[best, judged]
    return Replay(best_of_n, fixed, careful, tuned, betas, sizes)


def main(output: Path, replicates: int = 60, seed: int = 0) -> dict[str, Replay]:
    replays = {name: replay(*load(*source), replicates, seed) for name, (_, *source) in POOLS.items()}
    for name, found in replays.items():
        print_table(name, found)
    draw(replays, output)
    return replays


def default_table(replicates: int = 60, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Print and return, by pool, the chances `(S, P)` of best-of-n and of pessimism without a `beta`."""
    print(f"Share of picks that are right. {hf_itp.get_strategy('pessimism')}")
    columns = "".join(f"{f'N = {size}':>9s}" for size in DEFAULT_SIZES)
    print(f"{'':32s}{'best-of-n':>27s}{'pessimism':>27s}   difference at N = 100\n{'':32s}{columns}{columns}")
    found = {}
    for name, source in DEFAULT_POOLS.items():
        rewards, gold = load(*source)
        best = best_of_n_chances(rewards, gold, DEFAULT_SIZES)
        careful = pessimism(None, rewards, gold, random_orders(rewards, replicates, seed), DEFAULT_SIZES)
        gain = Estimate.over_prompts(careful[-1] - best[-1])
        numbers = "".join(f"{chance:9.3f}" for chance in torch.cat([best, careful]).mean(dim=-1).tolist())
        print(f"{name:32s}{numbers}   {gain.mean:+.3f} ± {gain.interval[1] - gain.mean:.3f}")
        found[name] = best, careful
    return found


def print_table(name: str, found: Replay) -> None:
    print(f"{name}, {POOLS[name][0]}. Share of picks that are right:")
    print(f"{'N':22s}", *(f"{size:5d}" for size in SIZES))
    curves = {"best-of-n": found.best_of_n} | {f"pessimism, beta {beta}": curve for beta, curve in found.fixed.items()}
    for label, curve in {**curves, "pessimism, by halves": found.pessimism}.items():
        print(f"{label:22s}", *(f"{chance:5.3f}" for chance in curve.mean(dim=-1).tolist()))
    print(f"best-of-n, N tuned by halves: {found.tuned_best_of_n.mean():.3f}")
    print("Chosen for even and odd prompts: beta", *found.betas, "and N", *found.sizes)
    for words, difference in {
        "best-of-100 minus best-of-4": found.best_of_n[-1] - found.best_of_n[SIZES.index(4)],
        "pessimism at N = 100 minus best-of-100": found.pessimism[-1] - found.best_of_n[-1],
        "pessimism at N = 100 minus best-of-n, N tuned": found.pessimism[-1] - found.tuned_best_of_n,
    }.items():
        estimate = Estimate.over_prompts(difference)
        print(f"{words}: {estimate.mean:+.3f}, standard error {estimate.standard_error:.3f}")
    print()


def draw(replays: dict[str, Replay], output: Path) -> None:
    figure, panels = plt.subplots(1, len(replays), figsize=(11.5, 4.7), layout="constrained")
    for panel, (name, found) in zip(panels, replays.items(), strict=True):
        draw_curve(panel, "best-of-n", found.best_of_n, BEST, "o")
        draw_curve(panel, "pessimism, beta chosen on the other half of the prompts", found.pessimism, CAREFUL, "D")
        draw_level(panel, "best-of-n, N chosen on the other half", found.tuned_best_of_n, BEST, (0, (5, 3)))
        draw_level(panel, "plain sampling", found.best_of_n[0], GREY, ":")
        gain = Estimate.over_prompts(found.pessimism[-1] - found.best_of_n[-1])
        words = f"pessimism minus best-of-n at N = 100:\n{gain.mean:+.3f} ± {gain.interval[1] - gain.mean:.3f}"
        panel.text(0.03, 0.97, words, transform=panel.transAxes, va="top", fontsize=9)
        panel.set_title(f"{name}\n", fontsize=11.5, loc="left", weight="bold")
        panel.text(0, 1.03, POOLS[name][0], transform=panel.transAxes, fontsize=9.5)
        panel.set_xscale("log", base=2)
        panel.set_xticks(SIZES, [str(size) for size in SIZES])
        panel.set_xlabel("candidates drawn per prompt (N)")
        panel.set_ylim(0, 1.2 * panel.get_ylim()[1])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of picks that are right")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    figure.savefig(output, dpi=150)
    plt.close(figure)


def draw_curve(panel: Axes, label: str, curve: torch.Tensor, colour: str, marker: str) -> None:
    estimates = [Estimate.over_prompts(chances) for chances in curve]
    low, high = zip(*(estimate.interval for estimate in estimates), strict=True)
    panel.fill_between(SIZES, low, high, color=colour, alpha=0.13, linewidth=0)
    panel.plot(
        SIZES, [estimate.mean for estimate in estimates], color=colour, marker=marker, markersize=4, label=label
    )


def draw_level(panel: Axes, label: str, chances: torch.Tensor, colour: str, linestyle: str | tuple) -> None:
    panel.axhline(chances.mean().item(), color=colour, linestyle=linestyle, linewidth=1.2, label=label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("real_pools.png"), help="picture (default: %(default)s)")
    parser.add_argument("--replicates", type=int, default=60, help="draws of each N (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--default", action="store_true", help="print the table of pessimism without a beta instead")
    arguments = parser.parse_args()
    if arguments.default:
        default_table(arguments.replicates, arguments.seed)
    else:
        main(arguments.output, arguments.replicates, arguments.seed)
