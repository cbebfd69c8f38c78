"""From births and deaths of storages to bytes by kind over time: pure arithmetic on what a `Counter` has seen.

kind            is
parameters      the model's own, in its dtype; at ZeRO-3 this rank's part
gradients       of parameters, and the buffers that they are summed in
optimizer       masters, and what the optimizer keeps beside them
average         of the weights
batch           what the step is fed: one, where training has up to three more ready ahead
activations     made by the forward pass and alive after it
communication   went through a collective, and is none of these
working         all else: it comes and goes within an operator, a layer, a phase
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from launcher.dryrun.operation_counter import Piece

Kind = Literal["parameters", "gradients", "optimizer", "average", "batch", "activations", "communication", "working"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COARSE = 0.01  # of the peak: smaller changes are not moments of their own


@dataclass(frozen=True)
class Boundary:
    """Where a phase begins.

    Attributes:
        moment: of the counter.
        phase: that begins.
    """

    moment: int
    phase: str


@dataclass(frozen=True)
class Moment:
    """What lives at a moment.

    Attributes:
        phase: of the step.
        by_kind: bytes of the device.
    """

    phase: str
    by_kind: dict[Kind, int]

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(self.by_kind.values())


def kind_of(piece: Piece, boundaries: Sequence[Boundary]) -> Kind:
    """What a storage is."""
    if piece.kind:
        return _known(piece.kind)
    if piece.phase.startswith("forward"):
        end = next((b.moment for b in boundaries if b.moment > piece.born), None)
        if end is None or piece.died is None or piece.died >= end:
            return "activations"
    return "communication" if piece.sent else "working"


def moments(
    pieces: Sequence[Piece], boundaries: Sequence[Boundary], on_host: bool = False
) -> tuple[Moment, tuple[Moment, ...]]:
    """The fullest moment of a step, the first of them, and the way of the step: a moment for each change that matters.

    Args:
        pieces: that were seen.
        boundaries: of the step's phases; the last ends it.
        on_host: count what lies there instead of what lies on the device.
    """
    first, last = boundaries[0].moment, boundaries[-1].moment
    changes: list[tuple[int, Kind, int]] = []
    for piece in pieces:
        if piece.on_host == on_host and piece.size:
            kind = kind_of(piece, boundaries)
            changes.append((piece.born, kind, piece.size))
            if piece.died is not None:
                changes.append((piece.died, kind, -piece.size))
    changes.sort(key=lambda change: change[0])
    now = dict.fromkeys(KINDS, 0)
    total = 0
    for moment, kind, size in changes:
        if moment < first:
            now[kind] += size
            total += size
    peak, way = Moment(boundaries[0].phase, dict(now)), [Moment(boundaries[0].phase, dict(now))]
    highest, told, step = total, total, 0
    coarse = COARSE * max(1, total)
    for moment, kind, size in changes:
        if not first <= moment <= last:
            continue
        while step + 1 < len(boundaries) and boundaries[step + 1].moment <= moment:
            step += 1
        now[kind] += size
        total += size
        if total > highest:
            highest, peak = total, Moment(boundaries[step].phase, dict(now))
            coarse = COARSE * highest
        if abs(total - told) > coarse:
            told = total
            way.append(Moment(boundaries[step].phase, dict(now)))
    return peak, tuple(way)


def kept(pieces: Sequence[Piece], boundaries: Sequence[Boundary]) -> int:
    """Bytes that a forward pass made and that live at its end; of several forward passes, the most."""
    ends = [after.moment for before, after in pairwise(boundaries) if before.phase == "forward"]
    made = [p for p in pieces if p.phase.startswith("forward") and not p.on_host and not p.kind]
    alive = ((p.size for p in made if p.born < end and (p.died is None or p.died >= end)) for end in ends)
    return max(map(sum, alive), default=0)


def _known(kind: str) -> Kind:
    assert kind in KINDS, f"{kind} is no kind of memory"
    return kind
