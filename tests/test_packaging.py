"""Test that what is installed holds everything that is read at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_lower_bounds_are_the_oldest_versions_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["plots"], *extras["embedded"], *extras["train"]]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = {pin.name: pin.specifier for pin in map(Requirement, (line for line in lines if line[:1] not in ("", "#")))}
    for requirement in map(Requirement, declared):
        (bound,) = (part for part in requirement.specifier if part.operator == ">=")
        (pin,) = pins[requirement.name]
        assert Version(pin.version) == Version(bound.version), requirement.name


@pytest.mark.slow
def test_wheel_holds_the_card_templates_and_finds_them(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hf_itp", "model_cards"):  # a link in the first leads to the second
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "from hf_itp.hub.cards import templates_folder; print(templates_folder())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "installed", check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == tmp_path / "installed" / "hf_itp" / "model_cards"
