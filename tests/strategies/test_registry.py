"""Test strategies by name: what is found, what is refused, and packages that bring their own."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import hf_itp
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.strategies import BestOfN, Pessimism, Strategy, get_strategy, list_strategies, registry
from hf_itp.strategies.registry import OURS, strategy_class
from tests.tiny import PromptBoundReward, left_padded_batch, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent.parent

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from hf_itp import Strategy
from hf_itp.functional import best_of_n_law

@dataclass(frozen=True)
class Shy(Strategy):
    name: ClassVar[str] = "shy"
    level: float = 0.5

    def probabilities(self, rewards):
        return best_of_n_law(-(rewards - self.level).abs())

class NoStrategy:
    pass
"""


def test_our_own_are_listed_first_and_load_by_their_names():
    assert list_strategies()[: len(OURS)] == list(OURS) and {"best_of_n", "pessimism"} <= set(OURS)
    assert [strategy_class(name).name for name in OURS] == list(OURS)


def test_name_and_fields_make_the_strategy():
    assert get_strategy("best_of_n") == BestOfN()
    assert get_strategy("pessimism", beta=0.5, pool="fresh") == Pessimism(beta=0.5, pool="fresh")
    assert strategy_class("pessimism") is Pessimism


def test_object_is_returned_as_it_is():
    strategy = Pessimism(beta=0.5)
    assert get_strategy(strategy) is strategy


@pytest.mark.parametrize(
    ("strategy", "fields", "error", "remedy"),
    [
        (
            "pesimism",
            {},
            ArgumentError,
            r"Unknown strategy 'pesimism'\. Did you mean 'pessimism'\? Available: best_of_n, ",
        ),
        ("Best-of-N", {}, ArgumentError, r"Did you mean 'best_of_n'\?.*Correct the name or install the package"),
        ("", {}, ArgumentError, "Available: best_of_n, .*Correct the name or install the package"),
        ("auto", {}, ArgumentError, "Correct the name or install the package"),
        (None, {}, ArgumentTypeError, "got None. Pass one of: best_of_n"),
        (Pessimism, {}, ArgumentTypeError, "Pass one of: best_of_n"),
        ("pessimism", {"betta": 1}, ArgumentError, r"no field `betta`\. Did you mean 'beta'\? Its fields: beta, pool"),
        ("best_of_n", {"beta": 1}, ArgumentError, r"no field `beta`\. It has no fields\. Correct or remove it"),
        ("top_quantile", {}, ArgumentError, r"needs `multiplier`.*Pass multiplier=\.\.\., or a strategy object"),
        ("soft_best_of_n", {}, ArgumentError, r"needs `reward_temperature`.*Pass reward_temperature=\.\.\."),
        (
            "soft_best_of_n",
            {"temperature": 0.5},
            ArgumentError,
            r"strategy 'soft_best_of_n' is now called `reward_temperature`\. Pass reward_temperature=0\.5",
        ),
        ("pessimism", {"bound": 1}, ArgumentError, "Did you mean 'reward_bound'"),
        ("pessimism", {"beta": -1}, ArgumentError, "Choose a beta on the scale of the rewards"),
        (
            BestOfN(),
            {"beta": 1, "k": 2},
            ArgumentError,
            r"`beta`, `k`\. Set the fields where",
        ),
    ],
)
def test_what_cannot_be_found_or_made_is_refused_with_a_remedy(strategy, fields, error, remedy):
    with pytest.raises(error, match=remedy):
        get_strategy(strategy, **fields)


@pytest.mark.parametrize(
    ("short", "meant"),
    [
        ("bon", "best_of_n"), ("BoN", "best_of_n"), ("bo16", "best_of_n"), ("best-of-4", "best_of_n"),
        ("bestofn", "best_of_n"), ("best", "best_of_n"), ("bop", "best_of_poisson"), ("poisson", "best_of_poisson"),
        ("won", "worst_of_n"), ("sbon", "soft_best_of_n"), ("soft_bon", "soft_best_of_n"), ("soft", "soft_best_of_n"),
        ("itp", "pessimism"), ("ITP", "pessimism"), ("pess", "pessimism"), ("pesimism", "pessimism"),
        ("inference_time_pessimism", "pessimism"), ("tq", "top_quantile"), ("quantile", "top_quantile"),
    ],
)  # fmt: skip
def test_short_name_gets_the_strategy_it_stands_for(short, meant):
    with pytest.raises(ArgumentError, match=f"Did you mean '{meant}'?"):
        get_strategy(short)


@pytest.mark.parametrize("name", ["", "x", "n", "greedy", "beam_search", "--"])
def test_name_that_is_like_none_gets_no_guess(name):
    with pytest.raises(ArgumentError) as caught:
        get_strategy(name)
    assert "Did you mean" not in str(caught.value)


# Strategies that a program registers


def first_drawn(name="first_drawn", qualname="FirstDrawn", **fields):
    """Return a class as a notebook's cell defines it."""

    def probabilities(self, rewards):
        return torch.nn.functional.one_hot(torch.zeros(rewards.shape[:-1], dtype=torch.long), rewards.shape[-1])

    namespace = {"name": name, "probabilities": probabilities, "__qualname__": qualname, **fields}
    return dataclass(frozen=True)(type("FirstDrawn", (Strategy,), namespace))


@pytest.fixture
def unregistered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def run_generate():
    return lambda **arguments: tiny_model("llama").generate(
        **left_padded_batch([7, 5]), reward_model=PromptBoundReward(), prompts=["a", "b"], num_candidates=4, seed=0,
        max_new_tokens=3, tokenizer=tiny_tokenizer(), return_dict_in_generate=True, **arguments,
    )  # fmt: skip


def test_registered_class_is_found_by_its_name_everywhere(unregistered, run_generate):
    cls = hf_itp.register(first_drawn())
    assert cls.name == "first_drawn" and strategy_class("first_drawn") is cls
    assert get_strategy("first_drawn") == cls()
    assert list_strategies() == [*OURS, "first_drawn"]
    output = run_generate(strategy="first_drawn")
    assert output.selected.tolist() == [[0], [0]] and output.probabilities[:, 0].tolist() == [1, 1]


def test_registered_fields_are_keywords_of_generate(unregistered, run_generate):
    @hf_itp.register
    @dataclass(frozen=True)
    class Nth(Strategy):
        name: ClassVar[str] = "nth"
        place: int

        def probabilities(self, rewards):
            places = torch.full(rewards.shape[:-1], self.place)
            return torch.nn.functional.one_hot(places, rewards.shape[-1]).double()

    assert run_generate(strategy="nth", place=2).selected.tolist() == [[2], [2]]
    with pytest.raises(ArgumentError, match=r"Pass place=\.\.\."):
        run_generate(strategy="nth")


@pytest.mark.parametrize(
    ("cls", "error", "remedy"),
    [
        (lambda: first_drawn("best_of_n"), ArgumentError, "already taken by 'hf_itp'. Give the class another `name`"),
        (lambda: type("Named", (BestOfN,), {}), ArgumentError, "already taken by 'hf_itp'. Give the class another"),
        (lambda: first_drawn("auto"), ArgumentError, r"must be an identifier other than auto and none, got 'auto'"),
        (lambda: first_drawn("first drawn"), ArgumentError, "Set e.g. name = 'my_rule'"),
        (lambda: first_drawn(None), ArgumentError, "Set e.g. name = 'my_rule'"),
        (lambda: type("Unnamed", (Strategy,), {"name": "x"}), ArgumentTypeError, "Define probabilities"),
        (lambda: BestOfN(), ArgumentTypeError, "register the class"),
        (lambda: dict, ArgumentTypeError, "Derive a class from it"),
    ],
)
def test_class_that_cannot_be_registered_is_refused(unregistered, cls, error, remedy):
    with pytest.raises(error, match=remedy):
        hf_itp.register(cls())
    assert list_strategies() == list(OURS)


def test_cell_that_is_run_again_replaces_its_class_and_another_class_is_refused(unregistered):
    first, again = first_drawn(), first_drawn()
    hf_itp.register(first)
    hf_itp.register(again)
    assert strategy_class("first_drawn") is again
    with pytest.raises(ArgumentError, match=r"already taken by '.*:FirstDrawn'. Give the class another `name`"):
        hf_itp.register(first_drawn(qualname="Rival"))
    assert strategy_class("first_drawn") is again


def test_of_many_threads_that_claim_a_name_one_gets_it(unregistered):
    def claim(number):
        try:
            return hf_itp.register(first_drawn(qualname=f"Claim{number}"))
        except ArgumentError:
            return None

    with ThreadPoolExecutor(8) as threads:
        winners = [cls for cls in threads.map(claim, range(64)) if cls is not None]
    assert [strategy_class("first_drawn")] == winners


def test_entry_point_of_a_registered_name_is_refused_unless_it_is_the_class(tmp_path):
    module = MODULE.replace("@dataclass", "@register\n@dataclass").replace("Strategy\n", "Strategy, register\n", 1)
    installed(tmp_path, "shy_package", "shy = shy_package:Shy", module)
    own = "import shy_package; assert get_strategy('shy').level == 0.5; print(list_strategies().count('shy'))"
    assert run_beside(tmp_path, own).stdout.strip() == "1"
    rival = (
        "from dataclasses import dataclass\nimport hf_itp\nfrom hf_itp.strategies import BestOfN\n"
        "@hf_itp.register\n@dataclass(frozen=True)\nclass Other(BestOfN):\n    name = 'shy'\n"
    )
    assert "already taken by 'shy_package'. Give the class another `name`" in run_beside(tmp_path, rival).stderr
    late = "import sys\npath = sys.path.pop()\n" + rival + "sys.path.append(path); list_strategies()"
    assert "of the package 'shy_package' is already taken by '__main__:Other'" in run_beside(tmp_path, late).stderr


def test_command_line_takes_a_registered_strategy(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE.replace("@dataclass", "@hf_itp.register\n@dataclass").replace(
        "from hf_itp import Strategy", "import hf_itp\nfrom hf_itp import Strategy"))  # fmt: skip
    ended = run_beside(tmp_path, "import mine\nfrom hf_itp.cli import main\nmain(['strategies', '--json'])")
    listed = {row["name"]: row["fields"] for row in json.loads(ended.stdout)}
    assert listed["shy"] == {"level": 0.5}


def installed(folder: Path, package: str, entry_points: str, module: str | None = MODULE) -> None:
    """Install a package as pip does: a module and its metadata."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[hf_itp.strategies]\n{entry_points}\n")
    if module is not None:
        (folder / f"{package}.py").write_text(module)


def run_beside(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    preamble = f"import sys; sys.path.append({str(folder)!r})\n"
    preamble += "from hf_itp import get_strategy, list_strategies\n"
    return subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, cwd=ROOT)


def test_strategy_of_an_installed_package_is_found_and_imported_only_when_asked_for(tmp_path):
    installed(tmp_path, "shy_package", "shy = shy_package:Shy")
    code = (
        "assert list_strategies()[-1] == 'shy' and 'shy_package' not in sys.modules\n"
        "get_strategy('pessimism'); assert 'shy_package' not in sys.modules\n"
        "import torch; print(get_strategy('shy', level=2.0).select(torch.tensor([0.0, 2.1, 9.0])).item())"
    )
    result = run_beside(tmp_path, code)
    assert result.stdout.strip() == "1", result.stderr


@pytest.mark.parametrize("call", ["get_strategy('best_of_n')", "list_strategies()"])
def test_package_that_takes_one_of_our_names_is_refused(tmp_path, call):
    installed(tmp_path, "rival", "best_of_n = rival:Shy")
    result = run_beside(tmp_path, call)
    assert "'best_of_n' of the package 'rival' is already taken by 'hf_itp'. Rename the entry point" in result.stderr


def test_two_packages_with_one_name_are_refused(tmp_path):
    installed(tmp_path, "first", "shy = first:Shy")
    installed(tmp_path, "second", "shy = second:Shy")
    result = run_beside(tmp_path, "get_strategy('shy')")
    assert "is already taken by" in result.stderr and "uninstall one of the packages" in result.stderr


@pytest.mark.parametrize(
    ("entry_point", "module", "remedy"),
    [
        ("shy = broken:Shy", None, "MissingDependencyError: Strategy 'shy' could not be imported"),
        ("shy = broken:Absent", MODULE, "Reinstall that package"),
        ("shy = broken:NoStrategy", MODULE, "Point it at the class"),
        ("timid = broken:Shy", MODULE, "Give both the same name"),
    ],
)
def test_package_that_does_not_deliver_is_named(tmp_path, entry_point, module, remedy):
    installed(tmp_path, "broken", entry_point, module)
    result = run_beside(tmp_path, f"get_strategy({entry_point.split()[0]!r})")
    assert remedy in result.stderr and "'broken'" in result.stderr


def test_package_installed_into_a_new_path_is_seen_by_a_running_process(tmp_path):
    installed(tmp_path, "later", "shy = later:Shy")
    code = (
        f"sys.path.remove({str(tmp_path)!r}); before = list_strategies()\n"
        f"sys.path.append({str(tmp_path)!r}); print(set(list_strategies()) - set(before))"
    )
    result = run_beside(tmp_path, code)
    assert result.stdout.strip() == "{'shy'}", result.stderr
