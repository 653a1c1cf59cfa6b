"""
Test that the documents are true: code of the pages runs, links and named paths exist, every example runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hf_itp.generation.keywords import page as keywords_page
from tests.examples import example

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_itp"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "data" / "README.md",
    *sorted((ROOT / "model_cards").glob("embedded_*.md")),
]
# Pages that name places in the code.
MAPS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "docs/paper_index.md", "docs/performance.md")]
# Code that continues from what the reader has, or asks the Hub, is only compiled.
NEEDS_MORE = re.compile(r"\"(org|Qwen)/|\*\*inputs|accelerator")


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(language):
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    return {
        f"{name_of(page)}-{number}": block
        for page in PAGES
        for number, block in enumerate(pattern.findall(text_of(page)))
    }


BLOCKS = blocks("python")
RUNNING = {name: block for name, block in BLOCKS.items() if not NEEDS_MORE.search(block)}


@pytest.mark.slow
@pytest.mark.uses_global_rng
@pytest.mark.parametrize("name", RUNNING)
def test_block_runs(name):
    names: dict = {}
    exec(compile(RUNNING[name], name, "exec"), names)
    if "helpfulness" in names:  # the judge of docs/reward_models.md
        from hf_itp.rewards import as_reward_function

        grades = as_reward_function(names["helpfulness"])(["Name a river."] * 2, ["The Nile is one.", "Go away."])
        assert all(1 < grade < 9 for grade in grades) and grades[0] != grades[1]


COMMANDS = {name: block for name, block in blocks("bash").items() if name.startswith("docs/")}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run(name, tmp_path):
    """Run in a folder of their own, by the `hf-itp` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", COMMANDS[name]],
        cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_blocks_that_run_are_on_every_page_of_the_main_job():
    pages = {name.rsplit("-", 1)[0] for name in RUNNING}
    main = ("strategies", "choosing_beta", "drawing", "paper_index", "reward_models", "verify", "threads")
    assert pages >= {"README.md", *(f"docs/{page}.md" for page in main)}
    assert {name.rsplit("-", 1)[0] for name in COMMANDS} == {"docs/night.md", "docs/verify.md"}


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in RUNNING])
def test_block_that_needs_more_is_python(name):
    compile(BLOCKS[name], name, "exec")


@pytest.mark.parametrize("name", blocks("diff"))
def test_code_is_python_after_its_change(name):
    lines = [line for line in blocks("diff")[name].splitlines() if not line.startswith("-")]
    assert all(line[0] in "+ " for line in lines if line)
    compile("\n".join(line[1:] for line in lines), name, "exec")


def test_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_install_lines_are_those_of_the_project():
    text = text_of(ROOT / "README.md")
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == set(extras)
    (weights,) = re.findall(r"--no-deps \S+==\S+ \S+==\S+", text)
    assert weights in text_of(ROOT / "Makefile")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text_of(page)):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not heading or heading in anchors(found), f"{target}#{heading}"


def anchors(page):
    headings = re.findall(r"^#+ (.*)", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MAPS, ids=name_of)
def test_named_paths_exist(page):
    paths = {
        path
        for path in re.findall(r"`([\w./-]+)`", text_of(page))
        if path.endswith(("/", ".py", ".md", ".toml", ".yaml", ".txt", ".png")) or path.startswith((".ci/", "tests/"))
    } - {"custom_generate/", "utils.py"}  # a folder of repositories on the Hub, and a file that must not exist
    examples = {path for path in paths if "my_" in path}  # files that a reader would add
    missing = {path for path in paths - examples if not any((root / path).exists() for root in (ROOT, PACKAGE))}
    assert paths - examples and not missing


def test_layout_names_every_folder_and_root_file():
    layout = text_of(ROOT / "CONTRIBUTING.md").split("## ")[1:]
    (layout,) = (section for section in layout if section.startswith("Where things are"))
    here = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert {folder for folder in here if f"`{folder}/`" not in layout} == set()
    inner = [path for path in PACKAGE.glob("*/*") if (path / "__init__.py").is_file()]
    assert {path.name for path in inner if f"{path.name}/`" not in layout} == set()
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    assert {file for file in files if f"`{file}`" not in layout} == set()


def test_names_of_formulas_in_the_paper_index_exist():
    from hf_itp import functional

    names = re.findall(r"`functional\.([a-z_]+)", text_of(ROOT / "docs" / "paper_index.md"))
    assert len(names) > 10 and [name for name in names if not hasattr(functional, name)] == []


def test_page_of_keywords_is_that_of_the_code():
    assert (ROOT / "docs" / "keywords.md").read_text() == keywords_page(), "write it again: make docs"


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


def test_reward_hacking_curve_is_that_of_the_page(tmp_path):
    module = example("reward_hacking")
    curves = module.main(tmp_path / "curve.png")
    best, careful = curves["best_of_n"], curves["pessimism(beta=0.02)"]
    # As docs/strategies.md says: 0.66 at N = 16, 0.03 at N = 1024, 0.75 for pessimism.
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


def test_readme_names_the_id_of_the_embedded_models_in_python():
    """Row 61: the id is in running text, with what it stands for."""
    text = text_of(ROOT / "README.md")
    assert 'The id `"embedded"` stands for these models' in text and 'reward_model="embedded"' in text
