"""Test what the plot of a pool shows, read back from the figure."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from hf_itp.evaluation import plot_pool
from hf_itp.functional import in_reward_units
from hf_itp.strategies import Pessimism

pytestmark = pytest.mark.oldest

REWARDS = torch.tensor([[1.0, 0.8, 0.5, 0.1, -0.3], [0.2, 0.2, 0.2, 0.2, 0.2]])
PROBABILITIES = torch.tensor([[0.7, 0.3, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
NORMALIZER = torch.tensor([0.65, 0.1])


def points_of(panel, label):
    [points] = [collection for collection in panel.collections if collection.get_label() == label]
    return sorted(map(tuple, points.get_offsets().tolist()))


def test_candidate_stands_at_its_reward_and_probability():
    panel = plot_pool(REWARDS, PROBABILITIES).axes[0]
    assert points_of(panel, "candidate") == [pytest.approx((0.8, 0.3)), pytest.approx((1.0, 0.7))]
    never = points_of(panel, "candidate, never returned")
    assert never == [pytest.approx((-0.3, 0)), pytest.approx((0.1, 0)), pytest.approx((0.5, 0))]


def test_normalizer_is_a_line_at_its_value_in_each_panel():
    figure = plot_pool(REWARDS, PROBABILITIES, normalizer=NORMALIZER)
    for panel, expected in zip(figure.axes, (0.65, 0.1), strict=True):
        [line] = [line for line in panel.lines if line.get_label().startswith("normalizer")]
        assert line.get_xdata() == pytest.approx([expected, expected])
        assert panel.get_xlim()[0] < expected


def rings_of(panel, name):
    return [line for line in panel.lines if line.get_label() == f"returned by {name}"]


def test_ring_stands_on_the_point_of_its_winner_in_each_panel():
    winners = {"best_of_n": torch.tensor([0, 3]), "pessimism": torch.tensor([1, 3])}
    figure = plot_pool(REWARDS, PROBABILITIES, winners=winners)
    for name, chosen in winners.items():
        for row, panel in enumerate(figure.axes):
            [ring] = rings_of(panel, name)
            point = float(REWARDS[row, chosen[row]]), float(PROBABILITIES[row, chosen[row]])
            assert ring.get_xydata().tolist() == [pytest.approx(point)]
            # In pixels too: nothing but the data decides where it is drawn.
            assert ring.get_transform().transform(point) == pytest.approx(panel.transData.transform(point))
            assert ring.get_markerfacecolor() == "none", "the point within stays visible"


def test_rings_of_winners_on_one_candidate_do_not_hide_each_other():
    winners = {name: torch.tensor([0, 0]) for name in ("plain", "best_of_n", "pessimism")}
    panel = plot_pool(REWARDS, PROBABILITIES, winners=winners).axes[0]
    rings = [ring for name in winners for ring in rings_of(panel, name)]
    sizes = [ring.get_markersize() for ring in rings]
    assert all(outer - inner > 2 * rings[0].get_markeredgewidth() for inner, outer in pairwise(sizes))
    assert len({ring.get_markeredgecolor() for ring in rings}) == 3


def test_candidates_on_one_point_are_counted():
    """Three tie for the best and two at 0; their probabilities differ by rounding only."""
    rewards = torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.0, 0.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    laws = [[0.3, 0.3 + 1e-12, 0.3 - 1e-12, 0.1, 0.0, 0.0], [1.0, 0, 0, 0, 0, 0]]
    probabilities = torch.tensor(laws, dtype=torch.float64)
    tied, untied = plot_pool(rewards, probabilities).axes
    counts = {text.xy: text.get_text() for text in tied.texts}
    assert counts == {(1.0, 0.3): "3x", (0.0, 0.0): "2x"}
    assert points_of(tied, "candidate") == [pytest.approx((0.5, 0.1)), pytest.approx((1.0, 0.3))]
    assert not untied.texts


def test_labels_head_their_panels_and_legend_names_everything_once():
    figure = plot_pool(REWARDS, PROBABILITIES, labels=["Why?", "How?"], normalizer=NORMALIZER, title="Pools")
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["Why?", "How?"]
    assert figure.get_suptitle() == "Pools"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names)) == 4


@pytest.mark.parametrize("num_prompts, num_candidates", [(1, 1), (3, 1), (4, 200)])
def test_pool_of_any_size_is_written(tmp_path, num_prompts, num_candidates):
    rewards = torch.linspace(-1, 1, num_prompts * num_candidates).view(num_prompts, num_candidates)
    probabilities = torch.full_like(rewards, 1 / num_candidates)
    plot_pool(rewards, probabilities, normalizer=rewards.amin(-1) - 1).savefig(tmp_path / "pool.png")
    assert (tmp_path / "pool.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({"rewards": REWARDS[0]}, r"rewards\[None\]"),
        ({"probabilities": PROBABILITIES[:, :3]}, r"strategy\.probabilities\(rewards\)"),
        ({"normalizer": NORMALIZER[:1]}, "one for each row"),
        ({"labels": ["one"]}, "one for each row"),
        ({"winners": {"best_of_n": torch.tensor([0])}}, "one for each row"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(changes, remedy):
    arguments = {"rewards": REWARDS, "probabilities": PROBABILITIES} | changes
    with pytest.raises(ArgumentError, match=remedy):
        plot_pool(arguments.pop("rewards"), arguments.pop("probabilities"), **arguments)


@pytest.mark.parametrize("normalizer", [0.9, 0.3])  # above a candidate in play, below one out of it
def test_normalizer_on_another_scale_than_the_rewards_is_refused(normalizer):
    with pytest.raises(ArgumentError, match=r"for prompt 0, whose candidate .*functional\.in_reward_units"):
        plot_pool(REWARDS, PROBABILITIES, normalizer=torch.tensor([normalizer, 0.1]))


def test_default_pessimism_is_drawn_in_units_of_the_reward():
    rewards = 100 + 10 * torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    strategy = Pessimism()
    law, normalizer = strategy.probabilities(rewards), strategy.diagnostics(rewards)["normalizer"]
    with pytest.raises(ArgumentError, match="in_reward_units"):
        plot_pool(rewards, law, normalizer=normalizer)
    line = in_reward_units(normalizer, rewards, strategy.normalize)
    figure = plot_pool(rewards, law, normalizer=line)
    # The hinge: in units of the reward beta is 0.2 standard deviations of each pool.
    expected = rewards.double() - 0.2 * rewards.double().std(-1, correction=0, keepdim=True) * law * 12
    for row in range(3):
        assert expected[row][law[row] > 0] == pytest.approx(line[row].item())
    assert len(figure.axes) == 4


def test_missing_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"hf-itp\[plots\]\""):
        plot_pool(REWARDS, PROBABILITIES)


def test_dollar_signs_in_a_prompt_begin_no_formula(tmp_path):
    figure = plot_pool(REWARDS[:1], PROBABILITIES[:1], labels=[r"Is $\frac of it worth $2?"])
    figure.savefig(tmp_path / "pool.png")
    assert figure.axes[0].get_title(loc="left") == r"Is \$\frac of it worth \$2?"


def test_arrays_and_lists_are_drawn_as_tensors_are():
    rewards, law, index = [[1.0, 0.5], [0.2, 0.8]], [[0.75, 0.25], [0.0, 1.0]], [0, 1]
    tensors = plot_pool(
        torch.tensor(rewards),
        torch.tensor(law),
        normalizer=torch.tensor([0.1, 0.2]),
        winners={"a": torch.tensor(index)},
    )
    others = plot_pool(np.array(rewards), law, normalizer=(0.1, 0.2), winners={"a": np.array(index)})
    for panels in zip(others.axes, tensors.axes, strict=True):
        drawn, expected = (np.concatenate([part.get_offsets() for part in panel.collections]) for panel in panels)
        np.testing.assert_allclose(drawn, expected, rtol=1e-6)
    with pytest.raises(ArgumentTypeError, match=r"`winners\['a'\]` must be real numbers"):
        plot_pool(rewards, law, winners={"a": [None, 1]})
