"""Replicas that compute nothing: packs of a step that do not deal out evenly to the replicas of a mesh.

    1 pack, 4 replicas    # . . .        3 of 4 places are empty: three replicas wait in every step
    5 packs, 4 replicas   # # # # | # . . .    two micro-steps, 3 of 8 places are empty

An empty place is a padding pack (launcher/batches/loader.py): a sample of weight zero, which costs little and gives
nothing. A step takes as long as its fullest replica, so the share of empty places is the share of the machine that is
paid in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.checkpoints.reading import Checkpoint
from launcher.config.run_config import RunConfig
from parallel.mesh import Mesh


@dataclass(frozen=True)
class Deal:
    """Packs of a step over replicas.

    Attributes:
        packs: of a step.
        replicas: that share them.
    """

    packs: int
    replicas: int

    @property
    def micro_steps(self) -> int:
        """Of a step: packs of the fullest replica."""
        return -(-self.packs // self.replicas)

    @property
    def empty(self) -> int:
        """Places of a step that no pack fills."""
        return self.micro_steps * self.replicas - self.packs

    def __str__(self) -> str:
        packs = f"{self.packs} pack{'s' if self.packs > 1 else ''}"
        idle = self.replicas - self.packs
        if idle > 0:
            verb = "computes" if idle == 1 else "compute"
            return f"{packs} a step for {self.replicas} replicas: {idle} of them {verb} nothing"
        places = self.micro_steps * self.replicas
        return f"{packs} a step for {self.replicas} replicas: {self.empty} of {places} places stay empty"


def idle_notes(config: RunConfig, begun: bool = False) -> Iterator[str]:
    """One sentence for each mesh of a run whose replicas do not all have a pack in every micro-step.

    Args:
        config: of the run.
        begun: it has a checkpoint, and keeps its packs: only the mesh may change.
    """
    for mesh in config.meshes:
        deal = Deal(config.data.packs_per_step, mesh.replica)
        if deal.empty:
            yield f"{deal}; {' or '.join(_remedies(config, mesh, deal, begun))} gives each of them work"


def _remedies(config: RunConfig, mesh: Mesh, deal: Deal, begun: bool) -> Iterator[str]:
    if not begun:
        yield f"data.packs_per_step={deal.micro_steps * mesh.replica}"
    fewer = max(n for n in range(1, mesh.replica) if mesh.replica % n == 0 and deal.packs % n == 0)
    ring = mesh.ring * (mesh.replica // fewer)
    least = min(data.pack_tokens for data in config.data.merged())
    if len(config.meshes) == 1 and ring * mesh.ulysses <= least:  # a segment has a mesh of its own
        yield f"mesh.replica={fewer} mesh.ring={ring}"
    elif begun:
        yield f"data.packs_per_step={deal.micro_steps * mesh.replica} in a run of its own (out=FOLDER)"


def as_begun(config: RunConfig, found: Checkpoint | None) -> RunConfig:
    """The run with the packs a step that it began with, if nobody has chosen others: its mesh may have changed."""
    if found is None or config.data.chosen_packs:
        return config
    before = found.manifest.config["data"]["packs_per_step"]
    return config.model_copy(update={"data": config.data.with_packs(before)})
