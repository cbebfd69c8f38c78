"""The feed: this rank's part of each step, made ready in a background thread while the step before is computed.

    cursor --stream--> packs of the step --assign--> mine --read--> frames --codec--> Packed --objective--> noisy
                                                          mask, split --> Plan

Packs are dealt to replicas in turn; a replica with none left gets a ghost: the step's first pack with weight zero, so
that every rank does the same number of micro-steps (ZeRO-3 hangs otherwise). At most `AHEAD` steps are held ready. The
cursor that goes with a batch is the one after it: of what was consumed, never of what was prefetched.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from data.plan import Cursor
from data.stream import Pack, Piece, Stream
from models.flow import Prepared, RectifiedFlow
from models.latents import Codec
from models.patches import patchify
from models.schedule import AttentionConfig, area_of, masks_of
from parallel.geometry import Geometry
from parallel.mesh import Groups
from parallel.packed import lay_out
from parallel.plan import Plan, plan_for
from parallel.split import balanced

AHEAD = 2
SWITCH_SECONDS = 2e-4  # of the interpreter, between two threads


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of this rank."""

    prepared: Prepared
    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Batch:
    """One step of this rank.

    Attributes:
        micro_steps: as many on every rank.
        weight: loss weight of this rank's tokens.
        digest: of all that the ranks of a replica must agree on.
        cursor: after this step.
        samples: ids of the whole step, all replicas.
        tokens: of the whole step.
        area: query-key pairs of the whole step, for one head, in the mean over layers.
    """

    micro_steps: tuple[MicroStep, ...]
    weight: float
    digest: int
    cursor: Cursor
    samples: tuple[str, ...]
    tokens: int
    area: float


@dataclass(frozen=True)
class Feed:
    """What it takes to make batches.

    Attributes:
        stream: of packs.
        codec: frames to latents.
        objective: latents to input and target.
        attention: patterns of the model's layers.
        groups: of this rank.
        packs_per_step: over all replicas.
        device: of the tensors.
    """

    stream: Stream
    codec: Codec
    objective: RectifiedFlow
    attention: tuple[AttentionConfig, ...]
    groups: Groups
    packs_per_step: int
    device: torch.device

    @property
    def micro_steps(self) -> int:
        """Of one step: as many as the replica with most packs needs."""
        return -(-self.packs_per_step // self.groups.mesh.replica)

    def batch(self, cursor: Cursor) -> Batch:
        """The step that begins at `cursor`."""
        packs, after = self.stream.packs(cursor, self.packs_per_step)
        steps = tuple(self._micro_step(p) for p in assign(packs, self.groups.mesh.replica, self.groups.place.replica))
        lengths = [d.tokens for pack in packs for d in pack.documents]
        return Batch(
            micro_steps=steps,
            weight=float(sum(s.prepared.packed.weight.double().sum() for s in steps)),
            digest=digest_of(steps, packs),
            cursor=after,
            samples=tuple(d.uid for pack in packs for d in pack.documents),
            tokens=sum(lengths),
            area=sum(area_of(self.attention, d.grid) for pack in packs for d in pack.documents),
        )

    def batches(self, cursor: Cursor) -> Generator[Batch, None, None]:
        """Batches for ever from `cursor` on, prefetched; closing the iterator ends the thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        closed = threading.Event()
        thread = threading.Thread(target=self._fill, args=(cursor, ready, closed), daemon=True, name="feed")
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            while thread.is_alive():  # it may be waiting for room
                _drain(ready)
                thread.join(0.05)

    def _fill(self, cursor: Cursor, ready: queue.Queue[Batch | BaseException], closed: threading.Event) -> None:
        try:
            step_aside()
            while not closed.is_set():
                batch = self.batch(cursor)
                cursor = batch.cursor
                ready.put(batch)
        except BaseException as error:  # it belongs to the rank's own thread
            ready.put(error)

    def _micro_step(self, pack: Pack) -> MicroStep:
        masks = masks_of(self.attention, [d.grid for d in pack.documents])
        split = balanced(max(masks, key=lambda mask: mask.area), self.groups.mesh)
        ranges = split.ranges[self.groups.place.sequence]
        pieces = self.stream.read(pack, ranges)
        values = torch.cat([self._empty(), *(self._values(pack, piece) for piece in pieces)]).to(self.device)
        prepared = self.objective.prepare(lay_out(pack.documents, ranges, values))
        plans = {id(mask): plan_for(mask, split, self.groups) for mask in masks}
        return MicroStep(prepared, tuple(plans[id(mask)] for mask in masks))

    def _empty(self) -> Tensor:
        return self.codec.encode(torch.zeros(0, 1, 1, 3, dtype=torch.uint8)).new_zeros(0, self.codec.geometry.token_dim)

    def _values(self, pack: Pack, piece: Piece) -> Tensor:
        """Clean tokens [stop - start, token_dim] of a piece."""
        geometry = self.codec.geometry
        tokens = patchify(self.codec.encode(torch.from_numpy(piece.frames)), geometry.patch)
        first = first_token(geometry, pack.documents[piece.document].grid, piece.first_frame)
        return tokens[piece.start - first : piece.stop - first]


def step_aside() -> None:
    """Let this thread have only what the training thread leaves.

    With as many compute threads as cores, each of their barriers would wait for a core that this thread sits on: on 2
    cores a step of 42 ms took 83. And when this thread holds the interpreter, the training thread waits for it: 5 ms,
    unless told otherwise, which cost 3 % of that step.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)  # of this thread's own operators
    with suppress(OSError):  # not every system lets a thread lower its priority
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


def assign(packs: Sequence[Pack], replicas: int, replica: int) -> list[Pack]:
    """The packs of one replica, filled up with ghosts to as many as the others have."""
    ghost = replace(packs[0], documents=tuple(replace(d, weight=0.0) for d in packs[0].documents))
    mine = list(packs[replica::replicas])
    return mine + [ghost] * (-(-len(packs) // replicas) - len(mine))


def first_token(geometry: Geometry, grid: tuple[int, int, int], first_frame: int) -> int:
    """Position in a document of the first token of frame `first_frame`, which begins a token."""
    per_token = geometry.stride[0] * geometry.patch[0]
    assert first_frame % per_token == 0, f"frame {first_frame} begins no token of {per_token} frames"
    return first_frame // per_token * grid[1] * grid[2]


def digest_of(steps: Sequence[MicroStep], packs: Sequence[Pack]) -> int:
    """63 bits of the plans of this replica and of what the step trains on: samples, captions, noise and frames."""
    plans = [plan.digest for step in steps for plan in step.plans]
    text = repr((plans, [(pack.rows, pack.starts, pack.documents) for pack in packs]))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _drain(ready: queue.Queue[Batch | BaseException]) -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return
