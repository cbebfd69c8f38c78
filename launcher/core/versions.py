"""Which versions a machine has, and which machine has others than the rest.

Ranks of one run exchange tensors and write one checkpoint: they must be of one torch (whose version names its CUDA:
2.13.0+cu130), one NCCL, one DeepSpeed, one Ray, and of the same code of ours. Drivers may differ: torch says itself if
one is too old. A node that differs is named with the package before a rank starts; afterwards it would be a
hang, or last digits that nobody can explain.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parallel.errors import InputError

PACKAGES = ("torch", "deepspeed", "ray", "blake3", "safetensors", "av")
CODE = ("launcher", "parallel", "models", "data")
HOME = Path(__file__).resolve().parent.parent.parent
DIGITS = 12  # of a digest: enough to tell one from another
NONE = "none"
CUDAS = range(11, 21)  # that a wheel of NCCL may be for


@dataclass(frozen=True)
class Difference:
    """A node that has another version of something than most.

    Attributes:
        node: its name.
        package: of which.
        has: its version.
        most: the version that most nodes have.
        others: how many have that one.
    """

    node: str
    package: str
    has: str
    most: str
    others: int


def versions_here() -> dict[str, str]:
    """Of Python, of the packages that ranks must share, and of our own code, as this process would import them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NONE
    return {**found, "nccl": _nccl(), "longreel": code_digest(HOME)}


def _nccl() -> str:
    """Of the wheel beside torch, nvidia-nccl-cu12 or of another CUDA; two of them are both named.

    They are asked for by name: to read the names of all that is installed takes every rank half a second.
    """
    found = set[str]()
    for cuda in CUDAS:
        with suppress(PackageNotFoundError):
            found.add(version(f"nvidia-nccl-cu{cuda}"))
    return ", ".join(sorted(found)) or NONE


def code_digest(home: Path) -> str:
    """Of every Python file of our packages below `home`: names and bytes."""
    digest = hashlib.sha256()
    for file in sorted(f for package in CODE for f in (home / package).rglob("*.py")):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(home)} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:DIGITS]


def differences(found: Mapping[str, Mapping[str, str]]) -> list[Difference]:
    """What differs from what most have; where there is no most, from what the first has.

    Args:
        found: versions of each node, by its name.
    """
    packages = dict.fromkeys(package for versions in found.values() for package in versions)
    told = []
    for package in packages:
        has = {node: versions.get(package, NONE) for node, versions in found.items()}
        most, others = Counter(has.values()).most_common(1)[0]  # of equals, the first that was counted
        told += [Difference(node, package, mine, most, others) for node, mine in has.items() if mine != most]
    return told


def refuse_other_versions(found: Mapping[str, Mapping[str, str]]) -> None:
    """Every node of a run has the same versions.

    Args:
        found: versions of each node, by its name.

    Raises:
        InputError: names each node and package that differs.
    """
    told = differences(found)
    if not told:
        return
    said = "; ".join(f"{d.node} has {d.package} {d.has}, {d.others} of {len(found)} have {d.most}" for d in told)
    remedy = "install the same there, and restart Ray"
    if all(d.package == "longreel" for d in told):
        remedy = "longreel submit, which ships this code to every node"
    raise InputError("all nodes of a run have the same versions", said, remedy)
