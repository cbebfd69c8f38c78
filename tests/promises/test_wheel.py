"""Whoever has the wheel alone, and no copy of the sources, has all of Longreel: its modules, its pages, its recipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("launcher", "data", "models", "parallel")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is made of: building one writes beside it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in (*PACKAGES, "recipes"):
        shutil.copytree(HOME / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOME / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(sources / "dist")], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = (sources / "dist").glob("*.whl")
    return made


def files(folder: Path) -> set[str]:
    """All below the packages of a folder, but what Python writes there itself."""
    found = (path for name in PACKAGES for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def test_a_wheel_holds_every_file_of_the_packages_and_the_recipes(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    recipes = {name for name in names if ".data/data/" in name}
    assert names - recipes == files(HOME)
    assert {name.partition(".data/data/")[2] for name in recipes} == {
        f"share/longreel/recipes/{path.name}" for path in (HOME / "recipes").iterdir()
    }


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and the packages that it needs from ours."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(f"{Path(pytest.__file__).resolve().parent.parent}\n")
    command = [place / "bin" / "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    subprocess.run(command, check=True)
    return place / "bin"


@pytest.mark.slow
@pytest.mark.ray
def test_every_command_of_the_quickstart_works_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [environment / command[0], *command[1:]], cwd=tmp_path, env=alone, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = f"print(*[__import__(name).__file__ for name in {PACKAGES}])"
    assert run("python", "-c", where).count(str(environment.parent)) == len(PACKAGES)
    assert "0 problems" in run("longreel", "doctor")
    run("longreel", "data", "synth", "--out", "clips", "--clips", "24", "--seed", "0")
    run("longreel", "prepare", "clips", "--out", "runs/quickstart-data")
    train = ("longreel", "train", "recipes/quickstart.yaml", "out=runs/mine")
    assert "step      4/4" in run(*train, "steps=4", "--no-ray")
    assert "step      6/6" in run(*train, "steps=6")
    assert ".mp4" in run("longreel", "sample", "runs/mine", "--steps", "2")
    run("longreel", "report", "runs/mine")
    page = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert "<style>" in page
    assert "<script" in page
