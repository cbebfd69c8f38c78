"""How longreel is installed where no test can: choices of torch in the Makefile, the image for GPU nodes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent.parent
VERSION = re.search(r"^torch==(\S+)$", (HOME / "constraints.txt").read_text(), re.MULTILINE)
BUILDS = ("cpu", "cu126", "cu128", "cu130")


def make(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do."""
    command = ["make", "-n", "setup", f"VENV={venv}", *arguments]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True)


def of_torch(text: str) -> list[str]:
    """Packages and index that torch's own line installs."""
    (line,) = (words for words in map(shlex.split, text.splitlines()) if any(w.startswith("torch") for w in words[-1:]))
    return line[line.index("-c") + 2 :]


def test_by_default_torch_is_the_pin_of_the_users_own_index(tmp_path: Path) -> None:
    done = make(tmp_path / "venv")
    assert of_torch(done.stdout) == ["torch"]
    assert "index-url" not in done.stdout


@pytest.mark.parametrize("build", BUILDS)
def test_a_build_of_torch_is_asked_for_by_its_own_name(tmp_path: Path, build: str) -> None:
    assert VERSION
    done = make(tmp_path / "venv", f"TORCH={build}")
    index = f"https://download.pytorch.org/whl/{build}"
    assert of_torch(done.stdout) == ["--extra-index-url", index, f"torch=={VERSION[1]}+{build}"]
    assert ("driver" in done.stdout) == (build != "cpu"), "each says the driver that it needs"
    done = make(tmp_path / "venv", f"TORCH={build}", "TORCH_INDEX=https://mirror.example/whl")
    assert f"https://mirror.example/whl/{build}" in done.stdout


def test_a_torch_that_is_there_is_kept(tmp_path: Path) -> None:
    done = make(tmp_path / "venv", "TORCH=keep")
    assert "-m venv --system-site-packages" in done.stdout
    assert "index-url" not in done.stdout
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert installs
    assert all(f"-c {tmp_path}/venv/constraints.txt" in line for line in installs), "its own version is pinned"


def test_another_choice_of_torch_is_installed_again(tmp_path: Path) -> None:
    (tmp_path / ".torch").write_text("cu126\n")
    (tmp_path / ".ready").touch()
    assert "pip install" not in make(tmp_path).stdout, "it stays what was chosen"
    assert "pip install" not in make(tmp_path, "TORCH=cu126").stdout
    assert "+cu130" in make(tmp_path, "TORCH=cu130").stdout


def test_an_unknown_build_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "TORCH=cu99")
    assert done.returncode != 0
    assert "TORCH=cu99 is none of: default keep cpu cu126 cu128 cu130" in done.stderr


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines joined."""
    lines = [line for line in (HOME / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def test_the_image_copies_what_is_there_and_is_not_ignored() -> None:
    copied = [shlex.split(rest)[:-1] for name, rest in instructions() if name == "COPY"]
    sources = {source for of_line in copied for source in of_line}
    ignored = [line for line in (HOME / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for source in sources:
        assert (HOME / source).exists(), source
        last = [line for line in ignored if fnmatch(source, line.removeprefix("!"))][-1]
        assert last == f"!{source}"
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = packages | {project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"}
    assert needed <= sources


def test_the_commands_of_the_image_parse_and_its_arguments_are_those_of_make() -> None:
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    every = instructions()
    assert {name for name, _ in every} <= known
    assert every[0][0] == "FROM"
    arguments = dict(rest.split("=", 1) for name, rest in every if name == "ARG")
    assert arguments["TORCH"] in BUILDS
    assert arguments["TORCH_INDEX"] in (HOME / "Makefile").read_text()
    for name, rest in every:
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
        if name in ("ENTRYPOINT", "CMD"):
            assert re.fullmatch(r'\["[^"]+"(, "[^"]+")*\]', rest)
    user = next(number for number, (name, rest) in enumerate(every) if name == "USER" and rest != "root")
    assert all(not rest.startswith("pip") for name, rest in every[user:] if name == "RUN")


def test_the_image_asks_for_the_pinned_torch_of_that_build() -> None:
    assert VERSION
    (line,) = (rest for name, rest in instructions() if name == "RUN" and "TORCH" in rest)
    shell = shutil.which("sh")
    assert shell
    script = line.replace("pip install", "echo")
    done = subprocess.run(
        [shell, "-c", script],
        cwd=HOME,
        capture_output=True,
        text=True,
        env={"TORCH": "cu130", "TORCH_INDEX": "https://i", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.splitlines()[-1].split()[-3:] == [
        "--extra-index-url",
        "https://i/cu130",
        f"torch=={VERSION[1]}+cu130",
    ]
