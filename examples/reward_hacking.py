"""
Show what over-optimizing a reward model does to each strategy. A constructed case: no model, a few seconds.

The reward ranks responses well up to a point. At quantile `u` of the reward the true quality is `u**12 * (1 - u)`,
scaled to a maximum of 1, so the very highest rewards are errors. Best-of-n finds them as N grows.
`examples/real_pools.py` shows real rewards.

    python examples/reward_hacking.py --output reward_hacking.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import hf_itp

NUM_POOLS = 4000
SIZES = [2**power for power in range(11)]
STRATEGIES = {
    "best_of_n": (hf_itp.get_strategy("best_of_n"), "#d55e00"),
    "pessimism(beta=0.02)": (hf_itp.get_strategy("pessimism", beta=0.02), "#0072b2"),
    "top_quantile(multiplier=7.4)": (hf_itp.get_strategy("top_quantile", multiplier=7.4), "#009e73"),
}


def quality(reward: torch.Tensor) -> torch.Tensor:
    best = 12 / 13
    return reward**12 * (1 - reward) / (best**12 * (1 - best))


def main(output: Path) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    curves: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    errors: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    for size in SIZES:
        rewards = torch.rand(NUM_POOLS, size, generator=generator, dtype=torch.float64)
        for name, (strategy, _) in STRATEGIES.items():
            # The exact mean over the strategy's own randomness: only the pools are random.
            expected = (strategy.probabilities(rewards) * quality(rewards)).sum(dim=-1)
            curves[name].append(expected.mean().item())
            errors[name].append(1.96 * expected.std().item() / NUM_POOLS**0.5)

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (_, colour) in STRATEGIES.items():
        axes.errorbar(SIZES, curves[name], errors[name], label=name, color=colour, marker="o", markersize=3, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("candidates drawn per prompt (N)")
    axes.set_ylabel("true quality of the response returned")
    axes.set_title("A reward model that errs at the top: best-of-n is fooled as N grows")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=150)
    return curves


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("reward_hacking.png"))
    for name, curve in main(parser.parse_args().output).items():
        print(f"{name:30s}", " ".join(f"{value:.3f}" for value in curve))
