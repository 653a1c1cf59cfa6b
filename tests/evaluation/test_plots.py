"""Test what the plot of a pool shows, read back from the figure."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hf_itp.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from hf_itp.evaluation import plot_pool

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


def test_winner_is_marked_at_its_candidate_in_each_panel():
    winners = {"best_of_n": torch.tensor([0, 3]), "pessimism": torch.tensor([1, 3])}
    figure = plot_pool(REWARDS, PROBABILITIES, winners=winners)
    for name, chosen in winners.items():
        for row, panel in enumerate(figure.axes):
            [mark] = [line for line in panel.lines if line.get_label() == f"returned by {name}"]
            assert mark.get_xdata()[0] == pytest.approx(float(REWARDS[row, chosen[row]]))


def test_marks_of_two_winners_on_one_candidate_do_not_hide_each_other():
    winners = {"best_of_n": torch.tensor([0, 0]), "pessimism": torch.tensor([0, 1])}
    figure = plot_pool(REWARDS, PROBABILITIES, winners=winners)
    heights = [
        line.get_transform().transform((1.0, 0.7))[1]
        for line in figure.axes[0].lines
        if "returned by" in line.get_label()
    ]
    assert abs(heights[0] - heights[1]) > 8


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
