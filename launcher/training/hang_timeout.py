"""How long a step may take before it is taken for a hang: its arithmetic, at a rate that any device reaches.

    dearest pack of the run --flops--> of a rank's step --/ rate x 3--> seconds

A million tokens on one GPU are half an hour in one phase, and no fixed number of seconds tells that from a hang. What
is counted is an upper bound (a pack filled with the samples that are dearest for their length), the rates are low, and
hangs of what is small are found as soon as ever: the bound of a small step is a few seconds.
"""

from __future__ import annotations

from typing import Any, Literal

from data.streams.curriculum import Curriculum
from parallel.mesh import Mesh

Kind = Literal["cuda", "cpu"]
RATES: dict[Kind, dict[str, float]] = {  # of operations a second of one rank: a third of what is poor
    "cuda": {"bf16": 100e12, "float32": 10e12, "float64": 2e12},
    "cpu": {"bf16": 5e9, "float32": 5e9, "float64": 5e9},
}
TIMES = 3.0
LEAST_SECONDS = 600.0  # that ranks wait for each other, however small a step is


def pack_flops(model: Any, curriculum: Curriculum) -> float:
    """Of the dearest pack that a model can have, forward and backward: see `launcher.training.loop.flops`."""
    dearest = max(float((s.plan.costs / s.plan.lengths).max()) * s.pack_tokens for s in curriculum.streams)
    return float(12.0 * model.dim * model.depth * dearest)


def step_seconds(flops: float, packs_per_step: int, mesh: Mesh, kind: Kind, dtype: str) -> float:
    """How long the dearest step takes on a poor device.

    Args:
        flops: see `pack_flops`.
        packs_per_step: of all replicas.
        mesh: that it runs on now.
        kind: of device.
        dtype: of the model.
    """
    packs = -(-packs_per_step // mesh.replica)
    return flops * packs / mesh.sequence_ranks / RATES[kind][dtype]


def patience(flops: float, packs_per_step: int, mesh: Mesh, kind: Kind, dtype: str) -> float:
    """Seconds in which a step that goes on is sure to have ended; arguments as of `step_seconds`."""
    return TIMES * step_seconds(flops, packs_per_step, mesh, kind, dtype)


def group_seconds(chosen: float | None, patience: float = 0.0) -> float:
    """How long ranks wait for each other: as the user chose, or at least ten minutes.

    NCCL counts from when a message is queued, and a whole step may be queued before it.
    """
    return chosen if chosen is not None else max(LEAST_SECONDS, patience)
