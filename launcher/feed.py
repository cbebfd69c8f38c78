"""The feed: this rank's part of each step, made ready in a background thread while the step before is computed.

    position --curriculum--> packs of the step --assign--> mine --read--> frames --codec--> Packed --objective--> noisy
                                                                          or latents
                                                              mask, split --> Plan

Packs are dealt to replicas by cost; a replica with one less gets a ghost: the step's smallest sample with weight zero,
so that every rank does the same number of micro-steps (ZeRO-3 hangs otherwise). At most `AHEAD` steps are held ready.
The position that goes with a batch is the one after it: of what was consumed, never of what was prefetched.

A sample that cannot be read does not stop the others: its frames are black here, and once every rank has heard of it
(launcher/rank.py) its tokens weigh nothing anywhere, shapes unchanged.
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

from data import packing
from data.curriculum import Curriculum, Position
from data.stream import Pack, Piece, Stream
from launcher.provenance import refuse_other_codec
from models.flow import Prepared, RectifiedFlow
from models.latents import Codec
from models.patches import patchify
from models.schedule import AttentionConfig, area_of, masks_of
from parallel.geometry import Geometry
from parallel.mesh import Groups
from parallel.packed import lay_out
from parallel.plan import Plan, plan_for
from parallel.random import key_of
from parallel.split import balanced

AHEAD = 2
CHECKSUM = (1 << 62) - 1
SWITCH_SECONDS = 2e-4  # of the interpreter, between two threads


@dataclass(frozen=True)
class Problem:
    """A sample that a rank could not read.

    Attributes:
        replica, micro_step, document: which one of the step.
        uid: of the sample.
        tokens: that it adds to the step; 0 in a ghost.
        reason: that it could not be read for.
    """

    replica: int
    micro_step: int
    document: int
    uid: str
    tokens: int
    reason: str


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of this rank.

    Attributes:
        prepared: input and target.
        plans: of attention, one a layer.
        received: see `Batch`.
        problems: of reading it, by document.
    """

    prepared: Prepared
    plans: tuple[Plan, ...]
    received: int
    problems: dict[int, str]


@dataclass(frozen=True)
class Batch:
    """One step of this rank.

    Attributes:
        micro_steps: as many on every rank.
        weight: loss weight of this rank's tokens.
        digest: of all that the ranks of a replica must agree on.
        received: checksum of the tokens that this rank has read; over all ranks it must be `expected`.
        expected: checksum of the tokens of the step.
        problems: samples that this rank could not read.
        position: after this step.
        samples: ids of the whole step, all replicas.
        tokens: of the whole step.
        area: query-key pairs of the whole step, for one head, in the mean over layers.
    """

    micro_steps: tuple[MicroStep, ...]
    weight: float
    digest: int
    received: int
    expected: int
    problems: tuple[Problem, ...]
    position: Position
    samples: tuple[str, ...]
    tokens: int
    area: float


@dataclass(frozen=True)
class Feed:
    """What it takes to make batches.

    Raises InputError if latents were made by another codec.

    Attributes:
        curriculum: what each step sees.
        codec: frames to latents.
        objective: latents to input and target.
        attention: patterns of the model's layers.
        groups: of this rank.
        device: of the tensors.
    """

    curriculum: Curriculum
    codec: Codec
    objective: RectifiedFlow
    attention: tuple[AttentionConfig, ...]
    groups: Groups
    device: torch.device

    def __post_init__(self) -> None:
        refuse_other_codec(self.curriculum, self.codec)

    @property
    def micro_steps(self) -> int:
        """Of one step: as many as the replica with most packs needs."""
        return -(-self.curriculum.packs_per_step // self.groups.mesh.replica)

    def batch(self, position: Position) -> Batch:
        """The step after `position`."""
        stream, packs, after = self.curriculum.next_step(position)
        mine = assign(packs, self.groups.mesh.replica, self.groups.place.replica)
        steps = tuple(self._micro_step(stream, pack) for pack in mine)
        replica = self.groups.place.replica
        problems = [
            Problem(replica, micro, number, d.uid, d.tokens if d.weight else 0, reason)
            for micro, (step, pack) in enumerate(zip(steps, mine, strict=True))
            for number, reason in step.problems.items()
            for d in (pack.documents[number],)
        ]
        documents = [document for pack in packs for document in pack.documents]
        return Batch(
            micro_steps=steps,
            weight=weight_of(steps),
            digest=digest_of(steps, packs),
            received=sum(step.received for step in steps) & CHECKSUM,
            expected=sum(checksum(d.uid, d.tokens) for d in documents) & CHECKSUM,
            problems=tuple(problems),
            position=after,
            samples=tuple(d.uid for d in documents),
            tokens=sum(d.tokens for d in documents),
            area=sum(area_of(self.attention, d.grid) for d in documents),
        )

    def without(self, batch: Batch, problems: Sequence[Problem]) -> Batch:
        """The batch with weight zero for samples that any rank of any replica could not read; shapes unchanged."""
        steps, received, expected = list(batch.micro_steps), batch.received, batch.expected
        for problem in {(p.replica, p.micro_step, p.document): p for p in problems}.values():
            expected -= checksum(problem.uid, problem.tokens)
            if problem.replica == self.groups.place.replica:
                step = steps[problem.micro_step]
                steps[problem.micro_step], tokens = silenced(step, problem.document)
                if problem.tokens and problem.document not in step.problems:  # this rank's part was read
                    received -= checksum(problem.uid, tokens)
        return replace(
            batch,
            micro_steps=tuple(steps),
            weight=weight_of(steps),
            received=received & CHECKSUM,
            expected=expected & CHECKSUM,
            problems=(),
        )

    def datasets(self, position: Position) -> tuple[tuple[str, ...], ...]:
        """Digests of the datasets of each segment that has begun before `position`."""
        begun = self.curriculum.segment(max(0, position.step - 1)) + 1
        return tuple(stream.index.digests for stream in self.curriculum.streams[:begun])

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """Batches for ever from `position` on, prefetched; closing the iterator ends the thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        closed = threading.Event()
        thread = threading.Thread(target=self._fill, args=(position, ready, closed), daemon=True, name="feed")
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

    def _fill(self, position: Position, ready: queue.Queue[Batch | BaseException], closed: threading.Event) -> None:
        try:
            step_aside()
            while not closed.is_set():
                batch = self.batch(position)
                position = batch.position
                ready.put(batch)
        except BaseException as error:  # it belongs to the rank's own thread
            ready.put(error)

    def _micro_step(self, stream: Stream, pack: Pack) -> MicroStep:
        masks = masks_of(self.attention, [d.grid for d in pack.documents])
        split = balanced(max(masks, key=lambda mask: mask.area), self.groups.mesh)
        ranges = split.ranges[self.groups.place.sequence]
        problems: dict[int, str] = {}
        pieces = stream.read(pack, ranges, lambda number, error: problems.update({number: error.value}))
        values = torch.cat([self._empty(), *(self._values(pack, piece) for piece in pieces)]).to(self.device)
        prepared = self.objective.prepare(lay_out(pack.documents, ranges, values))
        plans = {id(mask): plan_for(mask, split, self.groups) for mask in masks}
        received = 0
        for piece in pieces:
            document = pack.documents[piece.document]
            if document.weight and piece.document not in problems:  # a ghost is a copy of what others count
                received += checksum(document.uid, piece.stop - piece.start)
        return MicroStep(prepared, tuple(plans[id(mask)] for mask in masks), received, problems)

    def _empty(self) -> Tensor:
        nothing = torch.zeros(self.codec.geometry.channels, 0, 1, 1)
        return self.codec.normal(nothing).new_zeros(0, self.codec.geometry.token_dim)

    def _values(self, pack: Pack, piece: Piece) -> Tensor:
        """Clean tokens [stop - start, token_dim] of a piece."""
        geometry, grid = self.codec.geometry, pack.documents[piece.document].grid
        if piece.frames is not None:
            latents = self.codec.encode(torch.from_numpy(piece.frames))
            first = first_token(geometry, grid, piece.first_frame)
        else:
            assert piece.latents is not None, "a piece has frames or latents"
            latents = self.codec.normal(torch.from_numpy(piece.latents).transpose(0, 1))
            first = piece.first_frame // geometry.patch[0] * grid[1] * grid[2]
        tokens = patchify(latents, geometry.patch)
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
    shares = packing.assign([pack.cost for pack in packs], replicas)
    mine = [packs[number] for number in shares[replica]]
    return mine + [ghost_of(packs)] * (max(map(len, shares)) - len(mine))


def ghost_of(packs: Sequence[Pack]) -> Pack:
    """The smallest sample of a step, alone and with weight zero."""
    pack, at = min(((p, n) for p in packs for n in range(len(p.rows))), key=lambda x: x[0].documents[x[1]].tokens)
    alone = slice(at, at + 1)
    quiet = replace(pack.documents[at], weight=0.0)
    return Pack(pack.rows[alone], (quiet,), pack.starts[alone], pack.epochs[alone], 0.0)


def silenced(step: MicroStep, document: int) -> tuple[MicroStep, int]:
    """The micro-step with weight zero for one document, and how many of its tokens are here."""
    packed = step.prepared.packed
    here = packed.document == document
    quiet = replace(packed, weight=packed.weight.masked_fill(here, 0.0))
    return replace(step, prepared=replace(step.prepared, packed=quiet)), int(here.sum())


def weight_of(steps: Sequence[MicroStep]) -> float:
    """The loss weight of this rank's tokens."""
    return float(sum(s.prepared.packed.weight.double().sum() for s in steps))


def checksum(uid: str, tokens: int) -> int:
    """Adds up over the parts of a sample to that of the whole: what was lost or came twice shows in the sum."""
    return key_of(uid) * tokens & CHECKSUM


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
