"""Both ways to the environment ask for the same packages, and the pins fit the ranges."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distilwhisper_lib import session

ROOT = Path(__file__).parents[1]


def conda_pins() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    return pip


def make_pins() -> list[str]:
    """What the Makefile's own sed line reads from environment.yml."""
    (line,) = re.findall(r"^\tsed -n '(.+)' environment.yml", (ROOT / "Makefile").read_text(), re.M)
    done = subprocess.run(
        ["sed", "-n", line.replace("$$", "$"), str(ROOT / "environment.yml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_and_make_ask_for_the_same_packages():
    assert conda_pins() == make_pins()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in conda_pins())


def test_every_dependency_is_pinned_within_its_range():
    pinned = (pin.split("==") for pin in conda_pins())
    pins = {canonicalize_name(name): version for name, version in pinned}
    asked = project()["dependencies"] + project()["optional-dependencies"]["dev"]
    for extra in ("translation", "cluster"):
        asked += project()["optional-dependencies"][extra]
    for requirement in map(Requirement, asked):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} is pinned at {pin}"


def test_the_environment_that_runs_this_is_the_pinned_one():
    """Skips local labels such as +cpu, which stand for the same version."""
    if not (ROOT / ".venv" / ".ready").exists() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not the .venv of `make env`: the ranges of pyproject.toml apply")
    for name, version in (pin.split("==") for pin in conda_pins()):
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_ranges_keep_colabs_own_torch():
    requirements = {r.name: r for r in map(Requirement, project()["dependencies"])}
    assert requirements["torch"].specifier.contains("2.11.0")
    assert requirements["transformers"].specifier.contains("5.15.0")
    assert not requirements["transformers"].specifier.contains("6.0")
    assert requirements["datasets"].specifier.contains("4.0.0")
    assert requirements["ipywidgets"].specifier.contains("7.7.1")


def test_colab_installs_only_what_is_missing_and_never_torch(monkeypatch):
    assert session.missing_requirements() == []
    present = session.installed
    absent = {"jiwer", "torch", "numpy", "ipykernel", "papermill"}
    monkeypatch.setattr(session, "installed", lambda name: name not in absent and present(name))
    missing = [Requirement(r).name for r in session.missing_requirements()]
    assert missing == ["jiwer", "papermill"]
