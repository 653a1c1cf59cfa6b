"""
Plot pools. Each function returns a matplotlib figure to show, change or save, and changes no global state.

Knows nothing of models or text: it takes rewards and probabilities.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from hf_itp.arrays import as_floats, as_tensor
from hf_itp.errors import ArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct under every common colour vision; each winner has a ring of its own size as well.
_BLUE, _GREY, _INK = "#0072B2", "#999999", "#333333"
_WINNERS = ("#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_POINT, _RING, _STEP = 6.0, 10.0, 4.5  # diameters in points: of a candidate, the first ring, each further one
_COLUMNS = 2


def plot_pool(
    rewards: torch.Tensor,
    probabilities: torch.Tensor,
    *,
    normalizer: torch.Tensor | None = None,
    labels: Sequence[str] | None = None,
    winners: Mapping[str, torch.Tensor] | None = None,
    title: str | None = None,
) -> Figure:
    """
    Plot the candidates of each prompt in a panel: reward on the x axis, probability of being returned on the y axis.

    Under pessimism the candidates lie on a hinge: 0 up to the normalizer, then a straight line, so the plot shows at a
    glance how many candidates can still be returned. A dashed line marks plain sampling's `1 / N`. A ring around a
    point says who returned it. Candidates that share a point are counted beside it, as in "3x".

    Args:
        rewards (`torch.Tensor` of shape `(B, N)`):
            Rewards of the candidates.
        probabilities (`torch.Tensor` of shape `(B, N)`):
            A strategy's law on each pool, from [`Strategy.probabilities`].
        normalizer (`torch.Tensor` of shape `(B,)`, *optional*):
            Pessimism's normalizer, drawn as a line with the area to its left shaded. In units of `rewards`: see
            [`~hf_itp.functional.in_reward_units`] for one of z-scores.
        labels (`Sequence[str]` of length `B`, *optional*):
            Heading of each panel, for example the prompt.
        winners (`Mapping[str, torch.Tensor]`, *optional*):
            Index of the candidate each strategy returned, of shape `(B,)`, by the strategy's name.
        title (`str`, *optional*):
            Heading of the figure. By default it says what the panels show.

    Returns:
        `matplotlib.figure.Figure`: Write it with `figure.savefig("pool.png")`.

    Raises:
        `ArgumentError`: If the shapes do not go together, or a normalizer does not separate the candidates that can be
            returned from those that cannot.
        `MissingDependencyError`: If matplotlib is not installed.

    Examples:

    ```python
    >>> import torch
    >>> from hf_itp.evaluation import plot_pool
    >>> rewards = torch.tensor([[1.0, 0.8, 0.5, 0.1, -0.3]])
    >>> probabilities = torch.tensor([[0.7, 0.3, 0.0, 0.0, 0.0]])
    >>> winners = {"best_of_n": torch.tensor([0]), "pessimism": torch.tensor([1])}
    >>> figure = plot_pool(rewards, probabilities, normalizer=torch.tensor([0.65]), winners=winners)
    >>> figure.axes[0].get_xlabel()
    'reward'

    ```
    """
    rewards, probabilities = as_floats(rewards, "rewards"), as_floats(probabilities, "probabilities")
    normalizer = None if normalizer is None else as_floats(normalizer, "normalizer")
    winners = {name: as_tensor(chosen, f"winners[{name!r}]") for name, chosen in (winners or {}).items()}
    _check_shapes(rewards, probabilities, normalizer, labels, winners)
    if normalizer is not None:
        _check_normalizer(rewards, probabilities, normalizer)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('Plots need matplotlib. Install it: pip install "hf-itp[plots]".') from error

    num_prompts, num_candidates = rewards.shape
    columns = min(_COLUMNS, num_prompts)
    rows = -(-num_prompts // columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 1.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for index, panel in enumerate(panels):
        if index >= num_prompts:
            panel.set_axis_off()
            continue
        _draw_law(panel, rewards[index].tolist(), probabilities[index].tolist(), rings=len(winners or {}))
        if normalizer is not None:
            _draw_normalizer(panel, float(normalizer[index]))
        for place, (name, chosen) in enumerate(winners.items()):
            candidate = int(chosen[index])
            point = float(rewards[index, candidate]), float(probabilities[index, candidate])
            _draw_winner(panel, name, place, point)
        if labels is not None:
            # A dollar sign would begin a formula.
            label = textwrap.wrap(labels[index].replace("$", r"\$"), 56, max_lines=2)
            panel.set_title("\n".join(label), fontsize=10, loc="left")
        panel.set_xlabel("reward")
        panel.set_ylabel("probability of being returned")
        panel.margins(x=0.08)
        # Room for the rings and counts around the lowest and the highest point.
        highest = max(float(probabilities[index].max()), 1 / num_candidates)
        panel.set_ylim(bottom=-0.17 * highest, top=1.15 * highest)
        panel.set_yticks([tick for tick in panel.get_yticks() if 0 <= tick <= 1.15 * highest])
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or f"{num_candidates} candidates per prompt and the law that picks among them", fontsize=12)
    handles = {
        name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelspacing=0.9,
    )
    return figure


def _draw_law(panel: Axes, rewards: list[float], probabilities: list[float], rings: int) -> None:
    # Of ties, whose probabilities may differ by rounding, one point is drawn and counted.
    points = Counter(
        (reward, round(probability, 9)) for reward, probability in zip(rewards, probabilities, strict=True)
    )
    ever = [point for point in points if point[1] > 0]
    never = [point for point in points if point[1] == 0]
    panel.axhline(1 / len(rewards), color=_GREY, linestyle=(0, (4, 3)), linewidth=1, label="plain sampling: 1/N each")
    scatter = partial(panel.scatter, s=_POINT**2, zorder=3, clip_on=False)
    scatter(*zip(*ever, strict=True), color=_BLUE, alpha=0.85, label="candidate")
    if never:
        scatter(*zip(*never, strict=True), facecolor="none", edgecolor=_BLUE, label="candidate, never returned")
    below = -(_RING + _STEP * rings) / 2  # clear of the largest ring
    for point, count in points.items():
        if count > 1:
            panel.annotate(
                f"{count}x", point, (0, below), textcoords="offset points", ha="center", va="top", fontsize=8,
                color=_INK, annotation_clip=False, zorder=5,
            )  # fmt: skip


def _draw_normalizer(panel: Axes, normalizer: float) -> None:
    panel.axvline(normalizer, color=_INK, linewidth=1.2, label="normalizer: what is left of it is never returned")
    left, right = panel.get_xlim()
    left = min(left, normalizer - 0.05 * (right - left))
    panel.axvspan(left - (right - left), normalizer, color=_GREY, alpha=0.12, linewidth=0)
    panel.set_xlim(left, right)


def _draw_winner(panel: Axes, name: str, place: int, point: tuple[float, float]) -> None:
    # Rings grow with the place, so that all are seen where several rules return one candidate.
    panel.plot(
        *point,
        linestyle="none",
        marker="o",
        markersize=_RING + _STEP * place,
        markerfacecolor="none",
        markeredgecolor=_WINNERS[place % len(_WINNERS)],
        markeredgewidth=1.8,
        clip_on=False,
        zorder=4,
        label=f"returned by {name}",
    )


def _check_normalizer(rewards: torch.Tensor, probabilities: torch.Tensor, normalizer: torch.Tensor) -> None:
    line = normalizer.to(rewards)[:, None]
    slack = 1e-5 * (rewards.amax(dim=-1, keepdim=True) - rewards.amin(dim=-1, keepdim=True) + rewards.abs())
    wrong = ((rewards < line - slack) & (probabilities > 0)) | ((rewards > line + slack) & (probabilities <= 0))
    if wrong.any():
        row, candidate = wrong.nonzero()[0].tolist()
        raise ArgumentError(
            f"`normalizer` must separate the candidates that can be returned from those that cannot, got "
            f"{normalizer[row].item():.4g} for prompt {row}, whose candidate {candidate} has the reward "
            f"{rewards[row, candidate].item():.4g} and the probability {probabilities[row, candidate].item():.4g}. "
            "Bring one of z-scores to units of the reward with hf_itp.functional.in_reward_units(normalizer, rewards, "
            "'zscore'), or leave it out."
        )


def _check_shapes(
    rewards: torch.Tensor,
    probabilities: torch.Tensor,
    normalizer: torch.Tensor | None,
    labels: Sequence[str] | None,
    winners: Mapping[str, torch.Tensor] | None,
) -> None:
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ArgumentError(
            f"`rewards` must have shape (B, N), one row per prompt, got shape {tuple(rewards.shape)}. Add the missing "
            "dimension with rewards[None]."
        )
    if probabilities.shape != rewards.shape:
        raise ArgumentError(
            f"`probabilities` must have the shape of `rewards` {tuple(rewards.shape)}, got shape "
            f"{tuple(probabilities.shape)}. Pass strategy.probabilities(rewards)."
        )
    per_prompt: dict[str, torch.Tensor | Sequence[str] | None] = {"normalizer": normalizer, "labels": labels}
    per_prompt |= {f"winners[{name!r}]": chosen for name, chosen in (winners or {}).items()}
    for name, values in per_prompt.items():
        if values is not None and len(values) != len(rewards):
            raise ArgumentError(
                f"`{name}` must have one entry per prompt ({len(rewards)}), got {len(values)}. Pass one for each row "
                "of `rewards`."
            )
