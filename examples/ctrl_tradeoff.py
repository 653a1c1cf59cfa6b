"""
Draw what each transform of calibrated rewards gains: win rates against KL, plain and with best-of-n and worst-of-n.

Computed from integrals for rewards without ties: no model, a few seconds. Each panel shows the two optimal transforms
for its own n; for n = 1 they are the identity.

    python examples/ctrl_tradeoff.py --output ctrl_tradeoff.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt

from hf_itp.functional import AlignmentTradeoff, alignment_tradeoff, beta_for_kl
from hf_itp.functional.transforms import BestOfNOptimal, Exponential, Identity, Log, Transform, WorstOfNOptimal

SMALLEST_KL, LARGEST_KL = 0.002, 1.0
NUM_POINTS = 50
ELEMENTARY: dict[str, tuple[Transform, str]] = {
    "identity": (Identity(), "#000000"),
    "log": (Log(), "#e69f00"),
    "exponential(5)": (Exponential(5), "#56b4e9"),
    "exponential(10)": (Exponential(10), "#0072b2"),
    "exponential(-5)": (Exponential(-5), "#cc79a7"),
    "exponential(-10)": (Exponential(-10), "#d55e00"),
}
# Each optimum is solved again at every beta of the sweep; the beta here is only the first.
OPTIMA: dict[str, tuple[Callable[[int], Transform], str]] = {
    "best_of_n_optimal": (lambda n: BestOfNOptimal(n, beta=1.0), "#009e73"),
    "worst_of_n_optimal": (lambda n: WorstOfNOptimal(n, beta=1.0), "#7f7f7f"),
}
Measure = Callable[[AlignmentTradeoff], float]
PANELS: dict[str, tuple[int, Measure]] = {
    "win rate": (1, lambda tradeoff: tradeoff.win_rate),
    "best-of-2 win rate": (2, lambda tradeoff: tradeoff.best_of_n_win_rate(2)),
    "best-of-4 win rate": (4, lambda tradeoff: tradeoff.best_of_n_win_rate(4)),
    "worst-of-2 win rate": (2, lambda tradeoff: tradeoff.worst_of_n_win_rate(2)),
    "worst-of-4 win rate": (4, lambda tradeoff: tradeoff.worst_of_n_win_rate(4)),
}
Curve = list[tuple[float, float]]


def sweep(transform: Transform) -> list[AlignmentTradeoff]:
    """Return tradeoffs from the smallest to the largest KL, whose betas depend on the transform's units."""
    first, last = (math.log(beta_for_kl(transform, kl)) for kl in (SMALLEST_KL, LARGEST_KL))
    betas = [math.exp(first + (last - first) * step / (NUM_POINTS - 1)) for step in range(NUM_POINTS)]
    return [alignment_tradeoff(transform.at_beta(beta), beta) for beta in betas]


def main(output: Path) -> dict[str, dict[str, Curve]]:
    sweeps = {name: sweep(transform) for name, (transform, _) in ELEMENTARY.items()}
    optima = {(name, n): sweep(build(n)) for name, (build, _) in OPTIMA.items() for n in (2, 4)}
    curves: dict[str, dict[str, Curve]] = {}
    for panel, (n, measure) in PANELS.items():
        shown = {**sweeps, **{name: found for (name, own), found in optima.items() if own == n}}
        curves[panel] = {name: [(point.kl, measure(point)) for point in found] for name, found in shown.items()}
    draw(curves, output)
    return curves


def draw(curves: dict[str, dict[str, Curve]], output: Path) -> None:
    colours = {name: colour for name, (_, colour) in [*ELEMENTARY.items(), *OPTIMA.items()]}
    figure, grid = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained", sharex=True)
    legend, *_ = grid[1]
    for axes, (panel, lines) in zip([*grid[0], *grid[1, 1:]], curves.items(), strict=True):
        for name, points in lines.items():
            style = {"linestyle": (0, (4, 2)), "linewidth": 2.2} if name in OPTIMA else {"linewidth": 1.4}
            axes.plot(*zip(*points, strict=True), label=name, color=colours[name], **style)
        axes.set_title(panel)
        axes.set_xlim(0, LARGEST_KL)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (grid[0, 0], *grid[1, 1:]):
        axes.set_xlabel("KL from the reference policy (nats)")
        axes.tick_params(labelbottom=True)
    for axes in (grid[0, 0], grid[1, 1]):
        axes.set_ylabel("against the reference policy,\ndecoded alike")
    legend.axis("off")
    handles, names = grid[0, 1].get_legend_handles_labels()
    legend.legend(handles, names, loc="center", frameon=False, title="transform of the calibrated reward")
    figure.savefig(output, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("ctrl_tradeoff.png"))
    for panel, lines in main(parser.parse_args().output).items():
        print(f"{panel} at {LARGEST_KL} nats:", ", ".join(f"{name} {line[-1][1]:.3f}" for name, line in lines.items()))
