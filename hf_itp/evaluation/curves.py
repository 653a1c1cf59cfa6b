"""
Plot a sweep: what each strategy returns against the number of candidates, by gold and by the rewards that select.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hf_itp.errors import MissingDependencyError
from hf_itp.evaluation.sweep import ORACLE, Replay
from hf_itp.functional import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct under every common colour vision; markers tell lines of one colour apart.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X")


def plot_sweep(replays: Sequence[Replay], title: str | None = None) -> Figure:
    """
    Plot the curves of a sweep, a panel for gold, where there is gold, and one for the rewards that select.

    Bands are 95 % intervals over prompts. The oracle is left out: it would dwarf the others.

    Args:
        replays (`Sequence[Replay]`): From [`~evaluation.sweep.sweep`], at least one.
        title (`str`, *optional*): Heading of the figure.

    Returns:
        `matplotlib.figure.Figure`: Write it with `figure.savefig("sweep.png")`.

    Raises:
        `MissingDependencyError`: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('Plots need matplotlib. Install it: pip install "hf-itp[plots]".') from error
    shown = [replay for replay in replays if replay.label != ORACLE]
    panels = ["gold", "proxy"] if any(replay.gold is not None for replay in shown) else ["proxy"]
    figure = Figure(figsize=(5.6 * len(panels) + 0.6, 5.2), layout="constrained")
    names = {"gold": "gold reward of what is returned", "proxy": "reward of what is returned (it selected)"}
    for panel, measure in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, label in enumerate(dict.fromkeys(replay.label for replay in shown)):
            own = [replay for replay in shown if replay.label == label]
            _draw(panel, label, place, own, [getattr(replay, measure) for replay in own])
        panel.set_title(names[measure], fontsize=10, loc="left")
        panel.set_xlabel("candidates per prompt, N")
        panel.set_xscale("log", base=2)
        sizes = sorted({replay.num_candidates for replay in shown})
        panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw(panel: Axes, label: str, place: int, replays: Sequence[Replay], values: Sequence[torch.Tensor]) -> None:
    color, marker = COLORS[place % len(COLORS)], _MARKERS[place // len(COLORS) % len(_MARKERS)]
    estimates = [Estimate.over_prompts(value) for value in values]
    sizes = [replay.num_candidates for replay in replays]
    panel.plot(
        sizes, [estimate.mean for estimate in estimates], color=color, marker=marker, markersize=4, linewidth=1.4,
        label=label,
    )  # fmt: skip
    low, high = zip(*(estimate.interval for estimate in estimates), strict=True)
    panel.fill_between(sizes, low, high, color=color, alpha=0.1, linewidth=0)
