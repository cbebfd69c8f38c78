"""`Finding`: one thing about a machine, and how checks find it without taking each other down.

    check() --> Finding(name, ok | note | problem, what was found, what to type)

A note is worth knowing and stops nothing; a problem does. What is noisy, or may take the interpreter down when it is
imported (DeepSpeed, Ray, attention kernels built for another torch), is imported in a child.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HOME = Path(__file__).resolve().parent.parent.parent
GIB = 1 << 30
TORCH = "make setup, or with GPUs the build that fits their driver: make setup TORCH=cu126 (docs/gpu.md)"
SECONDS = 30.0  # until a child that imports is given up


@dataclass(frozen=True)
class Finding:
    """One thing about this machine.

    Attributes:
        name: what was looked at.
        status: "note" is worth knowing, "problem" stops something.
        found: in figures.
        remedy: what to type or change; empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def safely(name: str, check: Callable[[], Iterable[Finding]], remedy: str) -> list[Finding]:
    """What a check found; an exception is a problem of its own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries; what matters of them is in the findings
            return list(check())
    except ModuleNotFoundError as error:
        return [Finding(name, "problem", f"needs {error.name}, which is not installed", install(error.name or ""))]
    except Exception as error:
        return [Finding(name, "problem", one_line(error), remedy)]


@contextmanager
def child_importing(*modules: str) -> Iterator[subprocess.Popen[str]]:
    """A process that imports modules meanwhile and says how that went; see `imported`."""
    command = [sys.executable, "-P", "-c", IMPORTER, *modules]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


IMPORTER = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print("\\nlongreel imported", name, json.dumps(said), flush=True)
"""


def imported(child: subprocess.Popen[str], module: str) -> str:
    """How the child's import of a module went: empty if well."""
    try:
        out, errors = child.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"import {module} takes more than {SECONDS:g} s"
    answer = f"longreel imported {module} "
    for line in out.splitlines():
        if line.startswith(answer):
            return str(json.loads(line.removeprefix(answer)))
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "no word")
    return f"import {module} ended the process (exit code {child.returncode}): {last[:300]}"


def import_wrong(child: subprocess.Popen[str], module: str) -> str:
    """What keeps a module from being imported; empty if nothing does."""
    if importlib.util.find_spec(module) is None:
        return f"needs {module}, which is not installed"
    return imported(child, module)


def install(module: str) -> str:
    """How to get a package that is called like its module."""
    if module == "torch":
        return TORCH
    try:
        found = next((str(r) for r in requirements() if r.name == module), module)
    except Exception:  # we are explaining a failure: the list of requirements may be what is broken
        found = module
    return f"pip install '{found}'"


def one_line(error: BaseException) -> str:
    """An exception in at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def requirements() -> list[Requirement]:
    """What longreel depends on: of pyproject.toml beside the code, else of the installed package."""
    from packaging.requirements import Requirement

    file = HOME / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("longreel") or [] if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def version(package: str) -> str:
    """Of an installed package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB"
