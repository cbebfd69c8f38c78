"""What is asked of a cluster: machines that the meshes of a run fill, and a volume that all of them see."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from parallel import shell
from parallel.errors import InputError

if TYPE_CHECKING:
    from parallel.mesh import Mesh


KINDS_OF = {  # of options of the command that not every kind of cluster has
    "image": ("kuberay",), "storage": ("kuberay",), "option": ("slurm",), "memory": ("kuberay", "slurm"),
}  # fmt: skip


@dataclass(frozen=True)
class Machines:
    """What ranks run on, beside the head.

    Attributes:
        nodes: how many.
        gpus: of each; 0 for ranks on CPUs.
        cpus: of each; at least one a rank.
        gib: of memory of each.
    """

    nodes: int
    gpus: int
    cpus: int
    gib: int

    @property
    def ranks(self) -> int:
        """That one node has room for."""
        return min(self.gpus, self.cpus) if self.gpus else self.cpus

    def refuse_small(self, mesh: Mesh) -> None:
        """A mesh fits on these machines, each ulysses group on one of them.

        Raises:
            InputError: it does not.
        """
        from launcher.preflight.elastic_mesh import mesh_for  # it loads torch

        fits = mesh_for(mesh, mesh.ulysses, mesh.ranks, [self.ranks] * self.nodes)
        if fits != mesh:
            kind = "GPUs and CPUs" if self.gpus else "CPUs"
            found = f"{mesh} = {mesh.ranks} ranks, {self.nodes} nodes with {kind} for {self.ranks} each"
            remedy = f"--nodes {-(-mesh.ranks // max(1, self.ranks))} or more, or a smaller mesh"
            if self.ranks < mesh.ulysses:
                remedy = "nodes with more GPUs, or fewer mesh.ulysses and more mesh.ring"
            raise InputError("a mesh fits on the machines, a ulysses group on one of them", found, remedy)

    def refuse_idle(self, meshes: Sequence[Mesh], device: str) -> None:
        """No GPU is paid for that no rank ever uses, and no node of CPUs.

        Args:
            meshes: of the run, of which the largest counts.
            device: of the run.

        Raises:
            InputError: some stand idle.
        """
        mesh = max(meshes, key=lambda one: one.ranks)
        if not self.gpus:
            self._refuse_idle_nodes(mesh)
            return
        rule, have = "every GPU has a rank", f"--nodes {self.nodes} --gpus {self.gpus}"
        if device == "cpu":
            found = f"{have}, and the run has device: cpu"
            raise InputError(rule, found, "device=auto, or --gpus 0")
        if self.cpus < self.gpus:
            found = f"{have} --cpus {self.cpus}: a rank takes a CPU beside its GPU"
            raise InputError(rule, found, f"--cpus {self.gpus} or more, or --gpus {self.cpus}")
        there = self.nodes * self.gpus
        if mesh.ranks < there:
            found = f"{have}: {there} GPUs; the run's mesh, {mesh}, has {mesh.ranks} ranks: {there - mesh.ranks} idle"
            full, over = divmod(mesh.ranks, self.gpus)
            fewer = f"--nodes {full}" if full and not over else f"--nodes 1 --gpus {mesh.ranks}" if not full else ""
            more = (
                f"mesh.replica={there // (mesh.ring * mesh.ulysses)}" if there % (mesh.ring * mesh.ulysses) == 0 else ""
            )
            remedy = ", or ".join(filter(None, (fewer, more))) or "fewer or smaller nodes, or a larger mesh"
            raise InputError(rule, found, remedy)

    def _refuse_idle_nodes(self, mesh: Mesh) -> None:
        """Ranks fill one node after the other, a ulysses group on one; CPUs beside them help no rank of another."""
        taken = -(-mesh.ranks // (self.cpus // mesh.ulysses * mesh.ulysses))
        if taken < self.nodes:
            found = f"--nodes {self.nodes} --cpus {self.cpus}; the run's mesh, {mesh}, has {mesh.ranks} ranks, which "
            found += f"fill {taken}: {self.nodes - taken} idle"
            each, over = divmod(mesh.ranks, self.nodes)
            spread = f", or --cpus {each}" if not over and each % mesh.ulysses == 0 else ""
            raise InputError("every node has a rank", found, f"--nodes {taken}{spread}, or a larger mesh")


def refuse_other_options(kind: str, given: Mapping[str, Any]) -> None:
    """Options that a kind of cluster has no use for are not passed over.

    Args:
        kind: of cluster.
        given: options by name, with what they were given; None for those that were not.

    Raises:
        InputError: names the first, and the kinds that have it.
    """
    for name, value in given.items():
        kinds = KINDS_OF[name]
        if value is not None and kind not in kinds:
            found = f"--kind {kind} and --{name} {shell.quote(str(value[0] if isinstance(value, list) else value))}"
            remedy = f"leave --{name} out, or --kind {' or --kind '.join(kinds)}"
            raise InputError(f"--{name} is of --kind {' and '.join(kinds)}", found, remedy)


@dataclass(frozen=True)
class SharedVolume:
    """A volume that all pods see: a claim of Kubernetes, and where it is mounted."""

    claim: str
    path: str

    def refuse_outside(self, paths: Iterable[tuple[str, str]]) -> None:
        """Every path of a run lies on the volume: what a pod writes elsewhere is gone with it.

        Args:
            paths: (key of the run, absolute path).

        Raises:
            InputError: names those that do not, and the volume.
        """
        root = PurePosixPath(self.path)
        if len(root.parts) < 2 or ".." in root.parts or root.is_relative_to("/etc/longreel"):
            remedy = "a folder of its own, such as --storage shared:/mnt/shared"
            raise InputError("the volume is mounted in a folder of the pods", f"--storage {self.claim}:{root}", remedy)
        outside = [f"{key}={path}" for key, path in paths if not PurePosixPath(path).is_relative_to(root)]
        if outside:
            remedy = f"paths below {root}, or --storage {self.claim}:FOLDER that holds them all".replace(
                "FOLDER", common(outside)
            )
            found = f"{'; '.join(outside)}; the volume is mounted at {root}"
            raise InputError("every path of a run lies on the volume that all pods see", found, remedy)


def common(settings: Sequence[str]) -> str:
    """The folder that holds all paths of key=path."""
    paths = [PurePosixPath(one.partition("=")[2]).parent for one in settings]
    return os.path.commonpath([str(path) for path in paths])
