"""
What readers are told to run, runs: the README's Python, and every example.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from hf_itp.generation.keywords import page

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.uses_global_rng
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_of_the_readme_runs(block):
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.uses_global_rng
def test_judge_of_the_documents_grades():
    from hf_itp.rewards import as_reward_function

    page = (ROOT / "docs" / "reward_models.md").read_text().split("## A generative judge")[1]
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(block, "reward_models.md", "exec"), names)
    grades = as_reward_function(names["helpfulness"])(["Name a river."] * 2, ["The Nile is one.", "Go away."])
    assert all(1 < grade < 9 for grade in grades) and grades[0] != grades[1]


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_page_of_keywords_is_that_of_the_code():
    assert (ROOT / "docs" / "keywords.md").read_text() == page(), "write it again: make docs"


@pytest.mark.slow
def test_quickstart_answers(tmp_path, capsys):
    from hf_itp import embedded

    response = example("quickstart").main("Name a river.", embedded.policy_path(), "embedded", max_new_tokens=8)
    assert response and response in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.uses_global_rng
def test_own_reward_answers():
    answers = example("own_reward").main(max_new_tokens=8)
    assert len(answers) == 2 and all(answers)


def test_reward_hacking_curve_is_the_readmes(tmp_path):
    module = example("reward_hacking")
    curves = module.main(tmp_path / "curve.png")
    best, careful = curves["best_of_n"], curves["pessimism(beta=0.02)"]
    # The README's figures: 0.66 at N = 16, 0.03 at N = 1024, 0.75 for pessimism.
    assert round(best[4], 2) == 0.66 and round(best[10], 2) == 0.03 and round(careful[10], 2) == 0.75
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_each_panel_of_the_tradeoff_figure_is_led_by_its_own_optimum(tmp_path):
    panels = example("ctrl_tradeoff").main(tmp_path / "tradeoff.png")
    leaders = {
        "win rate": "identity",
        "best-of-2 win rate": "best_of_n_optimal",
        "best-of-4 win rate": "best_of_n_optimal",
        "worst-of-2 win rate": "worst_of_n_optimal",
        "worst-of-4 win rate": "worst_of_n_optimal",
    }
    # All curves end at the same divergence, so that their ends compare.
    assert {panel: max(lines, key=lambda name: lines[name][-1][1]) for panel, lines in panels.items()} == leaders
    assert all(abs(line[-1][0] - 1.0) < 1e-9 for lines in panels.values() for line in lines.values())
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000
