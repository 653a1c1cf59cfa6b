"""
Write a sweep as one web page that needs nothing else: curves to hover over and toggle, all numbers, prompts to read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from markupsafe import Markup

from hf_itp.errors import MissingDependencyError
from hf_itp.evaluation.curves import COLORS
from hf_itp.evaluation.sweep import Replay, mean_law
from hf_itp.functional import Estimate
from hf_itp.strategies import Strategy

_MOST_PROMPTS = 100
_MOST_LETTERS = 4000  # of a response
_MEASURES = {"gold": "gold reward of what is returned", "proxy": "reward of what is returned (it selected)"}


def sweep_page(
    replays: Sequence[Replay],
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    rewards_name: str,
    gold_name: str | None,
    title: str,
    summary: str = "",
) -> str:
    """
    Return the page of a sweep as HTML, with the first 100 prompts and their responses to read.

    Args:
        replays (`Sequence[Replay]`): From [`~evaluation.sweep.sweep`], at least one.
        rows (`Iterable`): The pool's rows, from [`~pools.file.read_rows`].
        rewards_name (`str`), gold_name (`str`, *optional*): The columns that were replayed.
        title (`str`): Heading.
        summary (`str`, *optional*): What there is to say about it, in sentences.

    Raises:
        `MissingDependencyError`: If plotly is not installed.
    """
    strategies = {replay.label: replay.strategy for replay in replays if replay.strategy is not None}
    size = max(replay.num_candidates for replay in replays)
    read = (
        _prompt(place, row, rewards_name, gold_name, list(strategies.values()), size)
        for place, (_, row) in enumerate(itertools.islice(rows, _MOST_PROMPTS))
    )
    pool = {"strategies": list(strategies), "prompts": [prompt for prompt in read if prompt is not None]}
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            summary=summary,
            figure=Markup(_figure(replays)),
            rows=[_numbers(replay) for replay in replays],
            size=size,
            # "<" could end the script; JSON may write it as an escape.
            pool=Markup(json.dumps(pool, ensure_ascii=False).replace("<", "\\u003c")),
        )
    )


def check_can_plot() -> None:
    """Raise `MissingDependencyError` unless pictures and pages can be made, before anything is replayed."""
    if missing := [name for name in ("matplotlib", "plotly") if find_spec(name) is None]:
        raise MissingDependencyError(
            f'Pictures and pages need {" and ".join(missing)}. Install them: pip install "hf-itp[plots]".'
        )


def _prompt(
    place: int,
    row: Mapping[str, Any],
    rewards_name: str,
    gold_name: str | None,
    strategies: Sequence[Strategy],
    size: int,
) -> dict[str, Any] | None:
    """Return what the page shows of a prompt, `None` if no response has a reward."""
    places = [place for place, reward in enumerate(row[rewards_name]) if reward is not None]
    if not places:
        return None
    rewards = [row[rewards_name][place] for place in places]
    table = torch.tensor([rewards], dtype=torch.float64)
    laws = [_law(strategy, table, min(size, len(places))) for strategy in strategies]
    responses = row.get("responses")
    return {
        "place": place,
        "prompt": _text(row.get("prompt", "")),
        "places": places,
        "rewards": rewards,
        "gold": None if gold_name is None else [row[gold_name][place] for place in places],
        "responses": responses and [str(responses[place])[:_MOST_LETTERS] for place in places],
        "laws": laws,
    }


def _law(strategy: Strategy, rewards: torch.Tensor, size: int) -> list[float]:
    """Return the mean law with at most `size` candidates, fewer where more may be drawn than there are."""
    while size > 1 and size + strategy.num_extra_candidates(size, 1) > rewards.shape[-1]:
        size -= 1
    if size + strategy.num_extra_candidates(size, 1) > rewards.shape[-1]:
        return [0.0] * rewards.shape[-1]
    generator = torch.Generator().manual_seed(0)
    return mean_law(strategy, rewards, size, generator=generator)[0].tolist()


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _numbers(replay: Replay) -> dict[str, Any]:
    found = replay.row()
    gold = "" if found["gold_mean"] is None else f"{found['gold_mean']:.3f} ± {found['gold_se']:.3f}"
    return {
        **found,
        "label": replay.label,
        "gold": gold,
        "proxy": f"{found['proxy_mean']:.3f} ± {found['proxy_se']:.3f}",
        **{name: f"{found[name]:.3f}" for name in ("win_rate", "kl_bound", "effective_sample_size")},
    }


def _figure(replays: Sequence[Replay]) -> str:
    check_can_plot()
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    measures = [name for name in _MEASURES if getattr(replays[0], name) is not None]
    figure = make_subplots(1, len(measures), subplot_titles=[_MEASURES[name] for name in measures])
    for place, label in enumerate(dict.fromkeys(replay.label for replay in replays)):
        own = [replay for replay in replays if replay.label == label]
        for column, name in enumerate(measures, start=1):
            estimates = [Estimate.over_prompts(getattr(replay, name)) for replay in own]
            figure.add_trace(
                Scatter(
                    x=[replay.num_candidates for replay in own],
                    y=[estimate.mean for estimate in estimates],
                    error_y={
                        "array": [estimate.interval[1] - estimate.mean for estimate in estimates],
                        "thickness": 0.7,
                    },
                    name=label,
                    legendgroup=label,
                    showlegend=column == 1,
                    # The oracle would dwarf the others.
                    visible="legendonly" if own[0].strategy is None else True,
                    mode="lines+markers",
                    line={"color": COLORS[place % len(COLORS)]},
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(
        type="log", title="candidates per prompt, N", tickvals=sorted({r.num_candidates for r in replays})
    )
    figure.update_layout(template="plotly_white", height=480, margin={"t": 60, "b": 40})
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
